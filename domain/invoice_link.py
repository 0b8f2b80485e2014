"""The link to an invoice: valid for 24 hours and for one use."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, assert_never

from pydantic import AwareDatetime

from domain.messages import Command, Decider, Event, Identifier, Refusal


class RefusalReason(StrEnum):
    """Why a link was not served."""

    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


class LinkIssued(Event):
    """A link to an invoice was issued. Only the recipient knows its token; the event holds the token's SHA-256."""

    TOPIC: ClassVar[str] = "invoice_link.LinkIssued.v1"
    link_id: Identifier
    invoice_id: Identifier
    order_id: Identifier
    ordinal: int
    token_sha256: str
    expires_at: AwareDatetime


class LinkConsumed(Event):
    """The invoice was served by this link, which is now spent."""

    TOPIC: ClassVar[str] = "invoice_link.LinkConsumed.v1"
    link_id: Identifier
    consumed_at: AwareDatetime


class LinkRefused(Event):
    """The link was used while it was not valid, so the invoice was not served."""

    TOPIC: ClassVar[str] = "invoice_link.LinkRefused.v1"
    link_id: Identifier
    reason: RefusalReason
    refused_at: AwareDatetime


class LinkRevoked(Event):
    """A newer link replaced this one. v1 did not say which."""

    TOPIC: ClassVar[str] = "invoice_link.LinkRevoked.v2"
    link_id: Identifier
    replaced_by: Identifier | None
    revoked_at: AwareDatetime


InvoiceLinkEvent = LinkIssued | LinkConsumed | LinkRefused | LinkRevoked


class IssueLink(Command):
    """Issue the ``ordinal``-th link of an invoice, from 1."""

    link_id: Identifier
    invoice_id: Identifier
    order_id: Identifier
    ordinal: int
    token_sha256: str
    expires_at: AwareDatetime


class ConsumeLink(Command):
    """Use the link, now."""

    link_id: Identifier
    token_sha256: str


class RevokeLink(Command):
    """Invalidate the link because a newer one replaces it."""

    link_id: Identifier
    replaced_by: Identifier


InvoiceLinkCommand = IssueLink | ConsumeLink | RevokeLink


@dataclass(frozen=True)
class InvoiceLink:
    """A link, folded from its events; ``issued`` is None if the link does not exist."""

    issued: LinkIssued | None = None
    consumed: bool = False
    revoked: bool = False

    def spent(self, at: AwareDatetime) -> RefusalReason | None:
        """Why the link is not valid at ``at``; None if it is valid."""
        assert self.issued is not None
        if self.consumed:
            return RefusalReason.USED
        if self.revoked:
            return RefusalReason.REVOKED
        return RefusalReason.EXPIRED if at >= self.issued.expires_at else None


class UnknownLink(Refusal):
    """No such link was issued, or the token is not the link's."""


def decide(command: InvoiceLinkCommand, link: InvoiceLink) -> list[InvoiceLinkEvent]:
    """The link's next events. Using a spent link is recorded (`LinkRefused`); using a wrong token is refused.

    Raises:
        UnknownLink: there is no such link, or the token is not the link's.
    """
    match command:
        case IssueLink():
            return [] if link.issued else [LinkIssued.model_validate(command.model_dump(exclude={"at"}))]
        case ConsumeLink():
            return _consume(command, link)
        case RevokeLink():
            if link.issued is None or link.consumed or link.revoked:
                return []
            return [LinkRevoked(link_id=command.link_id, replaced_by=command.replaced_by, revoked_at=command.at)]
        case _:
            assert_never(command)


def _consume(command: ConsumeLink, link: InvoiceLink) -> list[InvoiceLinkEvent]:
    token_sha256 = command.token_sha256.encode()
    if link.issued is None or not hmac.compare_digest(link.issued.token_sha256.encode(), token_sha256):
        raise UnknownLink("This link is not valid; ask for a new one.")
    reason = link.spent(command.at)
    if reason:
        return [LinkRefused(link_id=command.link_id, reason=reason, refused_at=command.at)]
    return [LinkConsumed(link_id=command.link_id, consumed_at=command.at)]


def evolve(link: InvoiceLink, event: InvoiceLinkEvent) -> InvoiceLink:
    """The link after one more event."""
    match event:
        case LinkIssued():
            return replace(link, issued=event)
        case LinkConsumed():
            return replace(link, consumed=True)
        case LinkRefused():
            return link
        case LinkRevoked():
            return replace(link, revoked=True)
        case _:
            assert_never(event)


INVOICE_LINK: Decider[InvoiceLinkCommand, InvoiceLink, InvoiceLinkEvent] = Decider(
    "invoice_link", InvoiceLink(), decide, evolve
)
