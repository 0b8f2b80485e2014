"""A partner account: the company that buys and is billed, and its billing receivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Final, assert_never

from pydantic import StringConstraints

from domain.messages import Command, Decider, Event, Identifier, Message, Refusal, Text
from domain.money import Currency
from domain.personal import ERASED, Personal
from domain.price_list import Country, SellerCode

Email = Annotated[
    str,
    StringConstraints(
        max_length=254,
        pattern=r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$",
    ),
]
"""An e-mail address: a dot-atom of RFC 5322, ``@``, a domain. What else RFC 5321 permits, nobody has."""


class BillingContact(Message):
    """Who gets the invoice, and what the invoice says of them. All of it is personal data."""

    name: Text
    email: Email
    company: Text
    address: Annotated[tuple[Text, ...], "the lines of a postal address"]
    country: Country
    phone: Text | None = None
    vat_id: Text | None = None

    @property
    def erased(self) -> bool:
        """Whether this is what was left when the person was erased: nobody whom a mail could reach."""
        return self.email == ERASED_EMAIL


ERASED_EMAIL: Final = "erased@erased.invalid"
"""An address that can never be anybody's (RFC 2606)."""

ERASED_CONTACT: Final = BillingContact(
    name=ERASED, email=ERASED_EMAIL, company=ERASED, address=(ERASED,), country="ZZ", phone=ERASED, vat_id=ERASED
)
"""What is read in the place of an erased contact. ``ZZ`` is no country, and never will be (ISO 3166-1, 8.1.3)."""

PersonalContact = Annotated[BillingContact, Personal(ERASED_CONTACT)]
PersonalEmail = Annotated[Email, Personal(ERASED_EMAIL)]


class AccountOpened(Event):
    """A company became a partner of the seller."""

    TOPIC: ClassVar[str] = "account.AccountOpened.v1"
    account_id: Identifier
    name: Text
    seller: SellerCode
    currency: Currency
    country: Country
    manager_email: Email


class BillingReceiverAdded(Event):
    """A contact joined the account's list of billing receivers."""

    TOPIC: ClassVar[str] = "account.BillingReceiverAdded.v1"
    account_id: Identifier
    receiver_id: Identifier
    contact: PersonalContact


class BillingReceiverChanged(Event):
    """The details of a billing receiver are others from now on; what was issued before keeps the earlier ones."""

    TOPIC: ClassVar[str] = "account.BillingReceiverChanged.v1"
    account_id: Identifier
    receiver_id: Identifier
    contact: PersonalContact


class DefaultBillingReceiverChosen(Event):
    """This receiver is filled in where an order names no other."""

    TOPIC: ClassVar[str] = "account.DefaultBillingReceiverChosen.v1"
    account_id: Identifier
    receiver_id: Identifier


class BillingReceiverErased(Event):
    """Nobody can read any more who this receiver was. The key of what was stored of the person is gone with this."""

    TOPIC: ClassVar[str] = "account.BillingReceiverErased.v1"
    account_id: Identifier
    receiver_id: Identifier


AccountEvent = (
    AccountOpened | BillingReceiverAdded | BillingReceiverChanged | DefaultBillingReceiverChosen | BillingReceiverErased
)


class OpenAccount(Command):
    """Open an account. Its contact becomes the first, and default, billing receiver.

    ``manager_email`` is the account manager's or the distributor's: whoever collects offline payments.
    """

    account_id: Identifier
    name: Text
    seller: SellerCode
    currency: Currency
    country: Country
    manager_email: Email
    receiver_id: Identifier
    contact: BillingContact


class AddBillingReceiver(Command):
    """Add a contact to the list."""

    account_id: Identifier
    receiver_id: Identifier
    contact: BillingContact


class ChangeBillingReceiver(Command):
    """Correct a contact of the list."""

    account_id: Identifier
    receiver_id: Identifier
    contact: BillingContact


class ChooseDefaultBillingReceiver(Command):
    """Choose who is filled in."""

    account_id: Identifier
    receiver_id: Identifier


class EraseBillingReceiver(Command):
    """Make everything that was stored of a billing receiver unreadable, for good."""

    account_id: Identifier
    receiver_id: Identifier


AccountCommand = (
    OpenAccount | AddBillingReceiver | ChangeBillingReceiver | ChooseDefaultBillingReceiver | EraseBillingReceiver
)


@dataclass(frozen=True)
class Account:
    """An account as its events tell it; ``opened`` is none while there is no such account."""

    opened: AccountOpened | None = None
    receivers: Mapping[str, BillingContact] = field(default_factory=dict)
    default_receiver_id: str | None = None
    erased: frozenset[str] = frozenset()

    def require(self, account_id: str) -> AccountOpened:
        """How the account was opened.

        Raises:
            UnknownAccount: there is no such account.
        """
        if self.opened is None:
            raise UnknownAccount(f"There is no account {account_id}; open it first.")
        return self.opened

    def receiver(self, receiver_id: str) -> BillingContact:
        """A contact of the list.

        Raises:
            UnknownBillingReceiver: the list has no such contact.
            BillingReceiverGone: it had, and the person was erased.
        """
        self.admit(receiver_id)
        if receiver_id not in self.receivers:
            known = ", ".join(self.receivers) or "none"
            raise UnknownBillingReceiver(f"There is no billing receiver {receiver_id}; the account's are: {known}.")
        return self.receivers[receiver_id]

    def admit(self, receiver_id: str) -> None:
        """See that an id was not erased.

        Raises:
            BillingReceiverGone: it was; it stands for that person for ever.
        """
        if receiver_id in self.erased:
            raise BillingReceiverGone(f"The billing receiver {receiver_id} was erased; choose, or add, another one.")


class UnknownAccount(Refusal):
    """No account has this id."""


class AccountStands(Refusal):
    """Another company has this account id."""


class UnknownBillingReceiver(Refusal):
    """The account's list has no such contact."""


class BillingReceiverStands(Refusal):
    """Another contact of the list has this id."""


class BillingReceiverGone(Refusal):
    """The contact was erased, and the id is not used again."""


def decide(command: AccountCommand, account: Account) -> list[AccountEvent]:
    """The account's next events.

    Raises:
        Refusal: one of the reasons of this module.
    """
    match command:
        case OpenAccount():
            return _open(command, account)
        case AddBillingReceiver():
            account.require(command.account_id)
            account.admit(command.receiver_id)
            if command.receiver_id not in account.receivers:
                return [BillingReceiverAdded.model_validate(command.model_dump(exclude={"at"}))]
            if account.receivers[command.receiver_id] == command.contact:
                return []
            raise BillingReceiverStands(
                f"{command.receiver_id} is another contact; change that one, or choose a new id."
            )
        case ChangeBillingReceiver():
            account.require(command.account_id)
            if account.receiver(command.receiver_id) == command.contact:
                return []
            return [BillingReceiverChanged.model_validate(command.model_dump(exclude={"at"}))]
        case ChooseDefaultBillingReceiver():
            account.require(command.account_id)
            account.receiver(command.receiver_id)
            if account.default_receiver_id == command.receiver_id:
                return []
            return [DefaultBillingReceiverChosen(account_id=command.account_id, receiver_id=command.receiver_id)]
        case EraseBillingReceiver():
            account.require(command.account_id)
            if command.receiver_id in account.erased:
                return []
            account.receiver(command.receiver_id)
            return [BillingReceiverErased(account_id=command.account_id, receiver_id=command.receiver_id)]
        case _:
            assert_never(command)


def _open(command: OpenAccount, account: Account) -> list[AccountEvent]:
    opened = AccountOpened.model_validate(command.model_dump(exclude={"at", "receiver_id", "contact"}))
    if account.opened == opened:
        return []
    if account.opened:
        raise AccountStands(f"The account {command.account_id} is {account.opened.name}'s; choose another id.")
    who = {"account_id": command.account_id, "receiver_id": command.receiver_id}
    return [opened, BillingReceiverAdded(**who, contact=command.contact), DefaultBillingReceiverChosen(**who)]


def evolve(account: Account, event: AccountEvent) -> Account:
    """The account after one more event."""
    match event:
        case AccountOpened():
            return replace(account, opened=event)
        case BillingReceiverAdded() | BillingReceiverChanged():
            return replace(account, receivers={**account.receivers, event.receiver_id: event.contact})
        case DefaultBillingReceiverChosen():
            return replace(account, default_receiver_id=event.receiver_id)
        case BillingReceiverErased():
            left = {name: contact for name, contact in account.receivers.items() if name != event.receiver_id}
            default = None if account.default_receiver_id == event.receiver_id else account.default_receiver_id
            erased = account.erased | {event.receiver_id}
            return replace(account, receivers=left, default_receiver_id=default, erased=erased)
        case _:
            assert_never(event)


ACCOUNT: Decider[AccountCommand, Account, AccountEvent] = Decider("account", Account(), decide, evolve, personal=True)
