"""The contract as AsyncAPI 3.0: every channel with its messages and their schemas, generated from the models."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from domain.messages import Command
from handlers.contract.commands import AnswerEvent, CommandEvent, offered
from handlers.contract.events import EVENTS
from handlers.contract.history import HistoryRequest
from infra.broker.cloudevents import CONTENT_TYPE, CloudEvent
from infra.broker.nats import COMMANDS, HISTORY_SUBJECT, subject_of
from infra.broker.nats import EVENTS as EVENT_STREAM
from infra.broker.signatures import SENDER_HEADER, SIGNATURE_HEADER

VERSION: Final = "1.0.0"
SCHEMAS: Final = "#/components/schemas/"
ABOUT: Final = f"""\
Events are published on the JetStream stream {EVENT_STREAM} in the order of the log, which for each account is the order
in which they happened; `partitionkey` is the account. Delivery is at least once: deduplicate by `id`. Fields and
enumeration values may be added: ignore those that you do not know. Events hold no personal data.

Commands are received on {COMMANDS}, signed, and handled once for each `id` of a sender. The outcome is published to the
subject that the header `Trunkline-Reply` names. See docs/messages.md.
"""

Json = dict[str, Any]


def document() -> Json:
    """Return the whole contract."""
    channels: Json = {}
    operations: Json = {}
    messages: Json = {}
    for event in EVENTS:
        name, address = event.__name__, subject_of(event)
        channels[name] = _channel(address, name, _first_line(EVENTS[event].data))
        messages[name] = _message(name, _first_line(EVENTS[event].data), "EventHeaders", _event_schema(name, address))
        operations[f"publish{name}"] = {"action": "send", **_on(name)}
    for address, kind in offered().items():
        name = kind.__name__
        channels[name] = _channel(address, name, _first_line(kind))
        messages[name] = _message(name, _first_line(kind), "CommandHeaders", _command_schema(name, address))
        operations[f"handle{name}"] = {"action": "receive", **_on(name), "reply": _reply("answers")}
    channels["answers"] = {
        "address": None,
        "description": "The subject that the header Trunkline-Reply names.",
        "messages": {"answer": {"$ref": "#/components/messages/Answer"}},
    }
    messages["Answer"] = _message("Answer", "The outcome of a command.", None, {"$ref": f"{SCHEMAS}AnswerEvent"})
    channels["history"] = _channel(HISTORY_SUBJECT, "HistoryRequest", "Requests for past events.")
    channels["pastEvents"] = {
        "address": None,
        "description": "The reply subject of the request: the messages of events, and one that ends the page.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in [e.__name__ for e in EVENTS]},
    }
    messages["HistoryRequest"] = _message(
        "HistoryRequest", _first_line(HistoryRequest), "SenderHeaders", {"$ref": f"{SCHEMAS}HistoryRequest"}
    )
    operations["answerHistory"] = {
        "action": "receive",
        "channel": {"$ref": "#/channels/history"},
        "messages": [{"$ref": "#/channels/history/messages/HistoryRequest"}],
        "reply": _reply("pastEvents"),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Trunkline", "version": VERSION, "description": ABOUT},
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _schemas()},
    }


def _channel(address: str, message: str, description: str) -> Json:
    return {
        "address": address,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _on(name: str) -> Json:
    return {"channel": {"$ref": f"#/channels/{name}"}, "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}]}


def _reply(channel: str) -> Json:
    where = "$message.header#/Trunkline-Reply" if channel == "answers" else "$message.header#/reply"
    return {"address": {"location": where}, "channel": {"$ref": f"#/channels/{channel}"}}


def _message(name: str, summary: str, headers: str | None, payload: Json) -> Json:
    described: Json = {"name": name, "title": name, "summary": summary, "contentType": CONTENT_TYPE}
    if headers:
        described["headers"] = {"$ref": f"{SCHEMAS}{headers}"}
    return {**described, "payload": payload}


def _event_schema(name: str, address: str) -> Json:
    data = next(published.data for event, published in EVENTS.items() if event.__name__ == name)
    return _enveloped("CloudEvent", address, data.__name__)


def _command_schema(name: str, address: str) -> Json:
    return _enveloped("CommandEvent", address, name)


def _enveloped(envelope: str, address: str, data: str) -> Json:
    narrowed = {"type": {"const": address}, "data": {"$ref": f"{SCHEMAS}{data}"}}
    return {"allOf": [{"$ref": f"{SCHEMAS}{envelope}"}, {"type": "object", "properties": narrowed}]}


def _schemas() -> Json:
    out: list[type[BaseModel]] = [CloudEvent, AnswerEvent, *dict.fromkeys(each.data for each in EVENTS.values())]
    into: list[type[BaseModel]] = [CommandEvent, HistoryRequest, *offered().values()]
    _, sent = models_json_schema([(model, "serialization") for model in out], ref_template=f"{SCHEMAS}{{model}}")
    _, received = models_json_schema([(model, "validation") for model in into], ref_template=f"{SCHEMAS}{{model}}")
    schemas: Json = {**sent["$defs"], **received["$defs"], **_HEADERS}
    for kind in offered().values():
        if issubclass(kind, Command):  # its time is the time of its arrival
            schema = schemas[kind.__name__]
            schema["properties"].pop("at")
            schema["required"].remove("at")
    return dict(sorted(schemas.items()))


def _first_line(model: type) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


_TEXT: Final = {"type": "string"}
_SENDER: Final = {
    SENDER_HEADER: {**_TEXT, "description": "The name of the sender in TRUNKLINE_SENDERS."},
    SIGNATURE_HEADER: {
        **_TEXT,
        "description": "HMAC-SHA256, in hexadecimal, of subject, reply subject and body, with line feeds between.",
    },
}
_HEADERS: Final[Json] = {
    "SenderHeaders": {"type": "object", "properties": _SENDER, "required": list(_SENDER)},
    "CommandHeaders": {
        "type": "object",
        "properties": {**_SENDER, "Trunkline-Reply": {**_TEXT, "description": "Where to send the answer."}},
        "required": list(_SENDER),
    },
    "EventHeaders": {
        "type": "object",
        "properties": {
            "Nats-Msg-Id": {**_TEXT, "description": "The id of the event."},
            "Content-Type": {**_TEXT, "const": CONTENT_TYPE},
            "Trunkline-Position": {**_TEXT, "description": "The position of the event."},
            "traceparent": {
                **_TEXT,
                "description": "The trace (W3C Trace Context) of the command, if the seller collects traces.",
            },
        },
        "required": ["Nats-Msg-Id", "Content-Type", "Trunkline-Position"],
    },
}
