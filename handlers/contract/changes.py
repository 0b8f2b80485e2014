"""Breaking changes between two versions of the contract.

In messages that we send, nothing that a reader may use can go or change its type. In messages that we receive, nothing
that a sender may send can be refused, and nothing new can be required.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
SHAPE = ("type", "format", "const")
"""The type of a value. A reader of the one could not read another."""
LIMITS = {"pattern", "maxLength", "minLength", "maximum", "minimum", "maxItems", "minItems", "exclusiveMinimum"}
_Seen = frozenset[tuple[str, str]]


def breaking_changes(old: Json, new: Json) -> list[str]:
    """Return one sentence for each breaking change."""
    return list(_changes(old, new))


def _changes(old: Json, new: Json) -> Iterator[str]:
    addresses = {channel["address"] for channel in new["channels"].values()}
    for name, channel in old["channels"].items():
        if channel["address"] not in addresses:
            yield f"the channel {channel['address'] or name} is gone"
    for name, operation in old["operations"].items():
        if name not in new["operations"]:
            yield f"the operation {name} is gone"
        elif new["operations"][name]["action"] != operation["action"]:
            yield f"the operation {name} changed its direction"
    received = {_message_of(o) for o in old["operations"].values() if o["action"] == "receive"}
    for name, message in old["components"]["messages"].items():
        if name not in new["components"]["messages"]:
            yield f"the message {name} is gone"
            continue
        later = new["components"]["messages"][name]
        compare = _Comparison(old, new, we_send=name not in received)
        for part in ("headers", "payload"):
            if part in message or part in later:
                yield from compare.schemas(f"{name}.{part}", message.get(part, {}), later.get(part, {}))


def _message_of(operation: Json) -> str:
    return str(operation["messages"][0]["$ref"]).rpartition("/")[2]


class _Comparison:
    def __init__(self, old: Json, new: Json, *, we_send: bool) -> None:
        self._old = old
        self._new = new
        self._we_send = we_send

    def schemas(self, where: str, old: Json, new: Json, seen: _Seen = frozenset()) -> Iterator[str]:
        """Compare the schemas of one field."""
        names = (old.get("$ref", ""), new.get("$ref", ""))
        if names[0] and names in seen:
            return
        seen = seen | {names}
        old, new = _whole(self._old, old), _whole(self._new, new)
        for key in SHAPE:
            if old.get(key) != new.get(key) and (key in old or not self._we_send):
                yield f"{where}: {key} was {old.get(key)} and is {new.get(key)}"
        if not self._we_send:
            yield from self._narrower(where, old, new)
        yield from self._alternatives(where, old, new, seen)
        yield from self._fields(where, old, new, seen)
        for key in ("items", "additionalProperties"):
            if isinstance(old.get(key), dict):
                if isinstance(new.get(key), dict):
                    yield from self.schemas(f"{where}[]", old[key], new[key], seen)
                else:
                    yield f"{where}: {key} is gone"

    def _fields(self, where: str, old: Json, new: Json, seen: _Seen) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, schema in before.items():
            if name not in after:
                yield f"{where}: the field {name} is gone"
            else:
                yield from self.schemas(f"{where}.{name}", schema, after[name], seen)
        needed, needed_now = set(old.get("required", ())), set(new.get("required", ()))
        if self._we_send:
            for name in sorted((needed - needed_now) & set(after)):
                yield f"{where}: the field {name} may be absent now"
        else:
            for name in sorted(needed_now - needed):
                yield f"{where}: the field {name} is required now"

    def _alternatives(self, where: str, old: Json, new: Json, seen: _Seen) -> Iterator[str]:
        for key in ("anyOf", "oneOf"):
            before = {_kind(self._old, each): each for each in old.get(key, ())}
            after = {_kind(self._new, each): each for each in new.get(key, ())}
            lost = after.keys() - before.keys() if self._we_send else before.keys() - after.keys()
            for kind in sorted(lost) if before else ():
                yield f"{where}: {kind} is {'new' if self._we_send else 'gone'} among its alternatives"
            for kind in sorted(before.keys() & after.keys()):
                yield from self.schemas(where, before[kind], after[kind], seen)

    def _narrower(self, where: str, old: Json, new: Json) -> Iterator[str]:
        words = set(map(str, old.get("enum") or ()))
        for word in sorted(words - set(map(str, new.get("enum") or words))):
            yield f"{where}: the value {word} is refused now"
        if "enum" in new and "enum" not in old:
            yield f"{where}: only some values are accepted now"
        for key in sorted(LIMITS & new.keys()):
            if old.get(key) != new[key] and not _wider(key, old.get(key), new[key]):
                yield f"{where}: {key} was {old.get(key)} and is {new[key]}"


def _wider(key: str, old: Any, new: Any) -> bool:  # noqa: ANN401 - JSON
    if old is None or isinstance(new, str):
        return False
    return bool(new >= old) if key.startswith("max") else bool(new <= old)


def _kind(document: Json, schema: Json) -> str:
    """Return what distinguishes an alternative: its name, or its type."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    return str(_whole(document, schema).get("type", schema))


def _whole(document: Json, schema: Json) -> Json:
    """Return a schema with its references resolved and its parts merged."""
    while "$ref" in schema:
        found: Any = document
        for step in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    if "allOf" not in schema:
        return schema
    parts = [_whole(document, part) for part in schema["allOf"]]
    properties: Json = {}
    for part in parts:
        properties |= part.get("properties", {})
    required = sorted({name for part in parts for name in part.get("required", ())})
    return {"type": "object", "properties": properties, "required": required}
