"""A service that lives on Trunkline's messages: it gives every package that begins a PBX, and every order its minutes.

It knows nats-py and the contract (docs/messages.md), and nothing of Trunkline's own code:

- it follows the events ``subscription.PackageActivated`` and ``allocation.CapacityGranted``, with a durable consumer;
- it creates a PBX for each package, and allocates recording minutes that were granted, by commands;
- it keeps nothing. The ids of all that it asks for follow from the event that it asks for it because of, so it may be
  killed at any moment, and what is delivered again is asked for again, and done once.

    python examples/provisioner/provisioner.py --data DIRECTORY      # of a running `trunkline up --data DIRECTORY`
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

EVENTS = "TRUNKLINE_EVENTS"
COMMANDS = "TRUNKLINE_COMMANDS"
NAME = "provisioner"
FOLLOWED = [
    "trunkline.events.v1.subscription.PackageActivated",
    "trunkline.events.v1.allocation.CapacityGranted",
]
ANSWER_S = 5.0
RETRY_DELAY_S = 1.0
ACK_S = 8
"""So soon what a killed process had begun comes to the next one."""
PBX_EXTENSIONS = 5


class Trunkline:
    """Commands to Trunkline, signed, and their answers."""

    def __init__(self, client: Client, sender: str, secret: str) -> None:
        self._client = client
        self._sender = sender
        self._secret = secret.encode()

    async def ask(self, command: str, message_id: str, correlation_id: str, /, **data: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Send a command until it is answered. Under one id it is done once, however often it is sent."""
        subject, reply = f"trunkline.commands.v1.{command}", self._client.new_inbox()
        inbox = await self._client.subscribe(reply)
        try:
            while True:
                body = json.dumps(
                    {
                        "specversion": "1.0",
                        "id": message_id,
                        "source": f"urn:example:{NAME}",
                        "type": subject,
                        "time": datetime.now(UTC).isoformat(),
                        "correlationid": correlation_id,
                        "data": data,
                    }
                ).encode()
                signed = b"\n".join([subject.encode(), reply.encode(), body])
                headers = {
                    "Trunkline-Reply": reply,
                    "Trunkline-Sender": self._sender,
                    "Trunkline-Signature": hmac.new(self._secret, signed, hashlib.sha256).hexdigest(),
                }
                with suppress(nats.errors.Error):  # it, or the answer, got lost: so it is sent again
                    await self._client.jetstream().publish(subject, body, stream=COMMANDS, headers=headers)
                    answer: dict[str, Any] = json.loads((await inbox.next_msg(timeout=ANSWER_S)).data)
                    return answer["data"]  # type: ignore[no-any-return]
                await asyncio.sleep(RETRY_DELAY_S)
        finally:
            await inbox.unsubscribe()


async def provision(event: dict[str, Any], trunkline: Trunkline) -> None:
    """Do what an event calls for."""
    data, account_id, correlation_id = event["data"], event["partitionkey"], event["correlationid"]
    package_id = data["package_id"]
    who = {"account_id": account_id, "package_id": package_id, "pbx_id": f"{package_id}-main"}
    if event["type"].endswith(".PackageActivated"):
        extensions = min(PBX_EXTENSIONS, data["quantities"].get("extensions", 0))
        facts = {**who, "name": "Main", "plan": "enterprise", "extensions": extensions}
        if extensions:
            report(event, await trunkline.ask("CreatePbx", f"create:{event['id']}", correlation_id, **facts))
    elif minutes := data["quantities"].get("recording_minutes"):
        facts = {**who, "allocation_id": event["id"], "service": "recording_minutes", "quantity": minutes}
        report(event, await trunkline.ask("AllocateCapacity", f"allocate:{event['id']}", correlation_id, **facts))


def report(event: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Say what came of it. A refusal is final: a person reads it."""
    print(f"{event['position']} {event['type'].rpartition('.')[2]}: {outcome}", flush=True)  # noqa: T201 - it is its log


async def run(nats_url: str, sender: str, secret: str, stopping: asyncio.Event) -> None:
    """Follow events until ``stopping``."""
    client = await nats.connect(nats_url.split(","), max_reconnect_attempts=-1)
    jetstream = client.jetstream()
    consumer = ConsumerConfig(
        durable_name=NAME, filter_subjects=FOLLOWED, ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_S, max_ack_pending=1
    )
    await jetstream.add_consumer(EVENTS, consumer)
    subscription = await jetstream.pull_subscribe_bind(NAME, EVENTS)
    trunkline = Trunkline(client, sender, secret)
    while not stopping.is_set():
        messages: list[Msg] = []
        with suppress(TimeoutError):
            messages = await subscription.fetch(1, timeout=1)
        for message in messages:
            await provision(json.loads(message.data), trunkline)
            await message.ack()  # after the answer: where we are killed before, the event comes again
    await client.close()


def connection_settings(data: Path | None) -> tuple[str, str, str]:
    """Where NATS is, and who we are there: what ``trunkline up`` left in its directory, or the environment says."""
    if data is None:
        return os.environ["NATS_URL"], os.environ["TRUNKLINE_SENDER"], os.environ["TRUNKLINE_SENDER_SECRET"]
    sender = json.loads((data / "senders.json").read_text(encoding="utf-8"))[0]
    return json.loads((data / "running.json").read_text(encoding="utf-8"))["nats_url"], sender["name"], sender["secret"]


async def main() -> None:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Follow Trunkline's events, and provision what they call for.")
    parser.add_argument("--data", type=Path, help="the directory of a running trunkline up")
    given = parser.parse_args()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print("The provisioner follows Trunkline's events; stop it by Ctrl-C.", flush=True)  # noqa: T201
    await run(*connection_settings(given.data), stopping)


if __name__ == "__main__":
    asyncio.run(main())
