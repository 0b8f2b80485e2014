"""A service that sends commands as messages and waits for the answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nats
from nats.aio.client import Client
from pydantic import SecretStr

from infra.broker.nats import COMMANDS
from infra.broker.signatures import SENDER_HEADER, SIGNATURE_HEADER, signature
from infra.settings import EVERY_ACCOUNT, Sender, SenderRole

PROVISIONER = Sender(name="provisioner", secret=SecretStr("provisioner" * 4), accounts=(EVERY_ACCOUNT,))
OF_ACME = Sender(name="crm", secret=SecretStr("crm" * 12), accounts=("acme",))
BOSS = Sender(name="boss", secret=SecretStr("boss" * 10), role=SenderRole.ADMIN, accounts=(EVERY_ACCOUNT,))
COLLECTOR = Sender(
    name="collector", secret=SecretStr("collector" * 5), role=SenderRole.DISTRIBUTOR, accounts=(EVERY_ACCOUNT,)
)
SENDERS = (PROVISIONER, OF_ACME, BOSS, COLLECTOR)
ANSWER_S = 60.0


def body_of(command: str, message_id: str, /, **data: Any) -> bytes:  # noqa: ANN401 - JSON
    """A command as it is on the wire."""
    event = {
        "specversion": "1.0",
        "id": message_id,
        "source": "urn:example:provisioner",
        "type": f"trunkline.commands.v1.{command}",
        "time": datetime.now(UTC).isoformat(),
        "data": data,
    }
    return json.dumps(event).encode()


def create_pbx(number: int = 1, *, message_id: str | None = None, **data: Any) -> bytes:  # noqa: ANN401 - JSON
    facts = {
        "account_id": "acme",
        "package_id": "pkg-acme",
        "pbx_id": f"pbx-{number}",
        "name": "Factory",
        "plan": "enterprise",
        "extensions": 1,
    }
    return body_of("CreatePbx", message_id or f"create-{number}", **{**facts, **data})


@dataclass(frozen=True)
class Service:
    """A NATS client that signs as a sender, or not at all if there is none."""

    url: str
    sender: Sender | None = PROVISIONER

    def ask(self, body: bytes, name: str = "CreatePbx", version: str = "v1", **headers: str) -> dict[str, Any]:
        """The answer to a command."""
        return asyncio.run(self._asked([(f"trunkline.commands.{version}.{name}", body)], headers))[0]

    def ask_all(self, bodies: list[bytes], name: str = "CreatePbx") -> list[dict[str, Any]]:
        """The answers to many commands sent without waiting in between, in the order of the commands."""
        return asyncio.run(self._asked([(f"trunkline.commands.v1.{name}", body) for body in bodies], {}))

    def tell(self, body: bytes, name: str = "CreatePbx", **headers: str) -> None:
        """Send a command without asking for an answer."""

        async def send() -> None:
            client = await nats.connect(self.url.split(","))
            subject = f"trunkline.commands.v1.{name}"
            await client.jetstream().publish(
                subject, body, stream=COMMANDS, headers={**self.signed(subject, "", body), **headers}
            )
            await client.close()

        asyncio.run(send())

    def signed(self, subject: str, reply: str, body: bytes) -> dict[str, str]:
        if self.sender is None:
            return {}
        secret = self.sender.secret.get_secret_value()
        return {SENDER_HEADER: self.sender.name, SIGNATURE_HEADER: signature(secret, subject, reply, body)}

    async def _asked(self, messages: list[tuple[str, bytes]], headers: dict[str, str]) -> list[dict[str, Any]]:
        client = await nats.connect(self.url.split(","))
        try:
            return await asyncio.gather(*[self._one(client, *message, headers) for message in messages])
        finally:
            await client.close()

    async def _one(self, client: Client, subject: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        reply = client.new_inbox()
        inbox = await client.subscribe(reply)
        given = {"Trunkline-Reply": reply, **self.signed(subject, reply, body), **headers}
        await client.jetstream().publish(subject, body, stream=COMMANDS, headers=given)
        answer: dict[str, Any] = json.loads((await inbox.next_msg(timeout=ANSWER_S)).data)
        await inbox.unsubscribe()
        return answer
