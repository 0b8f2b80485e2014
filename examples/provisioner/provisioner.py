"""A service driven by Trunkline's messages: it creates a PBX for each new package, and allocates granted minutes.

It uses nats-py and the message contract (docs/messages.md), and none of Trunkline's own code:

- a durable consumer follows the events ``subscription.PackageActivated`` and ``allocation.CapacityGranted``;
- commands create a PBX for each package, and allocate the recording minutes that were granted;
- it is stateless. The ids of its commands derive from the id of the event that they react to, so it may be killed at
  any moment: a redelivered event sends the same commands again, and each takes effect once.

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
"""How soon an event that a killed process had begun is redelivered to the next one."""
PBX_EXTENSIONS = 5


class Trunkline:
    """Sends signed commands to Trunkline and receives the answers."""

    def __init__(self, client: Client, sender: str, secret: str) -> None:
        self._client = client
        self._sender = sender
        self._secret = secret.encode()

    async def ask(self, command: str, message_id: str, correlation_id: str, /, **data: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Send a command until it is answered. The message id makes it idempotent, however often it is sent."""
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
                with suppress(nats.errors.Error):  # the command or its answer was lost: retry
                    await self._client.jetstream().publish(subject, body, stream=COMMANDS, headers=headers)
                    answer: dict[str, Any] = json.loads((await inbox.next_msg(timeout=ANSWER_S)).data)
                    return answer["data"]  # type: ignore[no-any-return]
                await asyncio.sleep(RETRY_DELAY_S)
        finally:
            await inbox.unsubscribe()


async def provision(event: dict[str, Any], trunkline: Trunkline) -> None:
    """Send the commands that an event calls for."""
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
    """Print the outcome of a command. A refusal is final, and for a person to read."""
    print(f"{event['position']} {event['type'].rpartition('.')[2]}: {outcome}", flush=True)  # noqa: T201 - this is the log


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
            await message.ack()  # only after the answer: if we are killed earlier, the event is redelivered
    await client.close()


def connection_settings(data: Path | None) -> tuple[str, str, str]:
    """Return URL, sender and secret: from the directory of a running ``trunkline up``, or from the environment."""
    if data is None:
        return os.environ["NATS_URL"], os.environ["TRUNKLINE_SENDER"], os.environ["TRUNKLINE_SENDER_SECRET"]
    sender = json.loads((data / "senders.json").read_text(encoding="utf-8"))[0]
    return json.loads((data / "running.json").read_text(encoding="utf-8"))["nats_url"], sender["name"], sender["secret"]


async def main() -> None:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Follow Trunkline's events and provision what they call for.")
    parser.add_argument("--data", type=Path, help="the data directory of a running `trunkline up`")
    given = parser.parse_args()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print("The provisioner follows Trunkline's events; stop it with Ctrl-C.", flush=True)  # noqa: T201
    await run(*connection_settings(given.data), stopping)


if __name__ == "__main__":
    asyncio.run(main())
