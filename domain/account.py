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
"""An e-mail address: a dot-atom of RFC 5322, ``@``, a domain. Nobody has the other forms that RFC 5321 permits."""


class BillingContact(Message):
    """The recipient of invoices, as printed on them. Every field is personal data."""

    name: Text
    email: Email
    company: Text
    address: Annotated[tuple[Text, ...], "the lines of a postal address"]
    country: Country
    phone: Text | None = None
    vat_id: Text | None = None

    @property
    def erased(self) -> bool:
        """Whether this is the placeholder of an erased person, whom no mail can reach."""
        return self.email == ERASED_EMAIL


ERASED_EMAIL: Final = "erased@erased.invalid"
"""An address that nobody can ever own (RFC 2606)."""

ERASED_CONTACT: Final = BillingContact(
    name=ERASED, email=ERASED_EMAIL, company=ERASED, address=(ERASED,), country="ZZ", phone=ERASED, vat_id=ERASED
)
"""The placeholder for an erased contact. ``ZZ`` is not a country and never will be (ISO 3166-1, 8.1.3)."""

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
    """A billing receiver has new details from now on; documents issued before keep the earlier ones."""

    TOPIC: ClassVar[str] = "account.BillingReceiverChanged.v1"
    account_id: Identifier
    receiver_id: Identifier
    contact: PersonalContact


class DefaultBillingReceiverChosen(Event):
    """This receiver is used if an order names no other."""

    TOPIC: ClassVar[str] = "account.DefaultBillingReceiverChosen.v1"
    account_id: Identifier
    receiver_id: Identifier


class BillingReceiverErased(Event):
    """This receiver's personal data is unreadable for good: the key that encrypted it is destroyed with this event."""

    TOPIC: ClassVar[str] = "account.BillingReceiverErased.v1"
    account_id: Identifier
    receiver_id: Identifier


AccountEvent = (
    AccountOpened | BillingReceiverAdded | BillingReceiverChanged | DefaultBillingReceiverChosen | BillingReceiverErased
)


class OpenAccount(Command):
    """Open an account. Its contact becomes the first billing receiver and the default one.

    ``manager_email`` belongs to whoever collects offline payments: the account manager or the distributor.
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
    """Add a contact to the account's billing receivers."""

    account_id: Identifier
    receiver_id: Identifier
    contact: BillingContact


class ChangeBillingReceiver(Command):
    """Correct the details of a billing receiver."""

    account_id: Identifier
    receiver_id: Identifier
    contact: BillingContact


class ChooseDefaultBillingReceiver(Command):
    """Choose the billing receiver that orders use by default."""

    account_id: Identifier
    receiver_id: Identifier


class EraseBillingReceiver(Command):
    """Make a billing receiver's stored personal data unreadable, for good."""

    account_id: Identifier
    receiver_id: Identifier


AccountCommand = (
    OpenAccount | AddBillingReceiver | ChangeBillingReceiver | ChooseDefaultBillingReceiver | EraseBillingReceiver
)


@dataclass(frozen=True)
class Account:
    """An account, folded from its events; ``opened`` is None if the account does not exist."""

    opened: AccountOpened | None = None
    receivers: Mapping[str, BillingContact] = field(default_factory=dict)
    default_receiver_id: str | None = None
    erased: frozenset[str] = frozenset()

    def require(self, account_id: str) -> AccountOpened:
        """Return the event that opened the account.

        Raises:
            UnknownAccount: there is no such account.
        """
        if self.opened is None:
            raise UnknownAccount(f"There is no account {account_id}; open it first.")
        return self.opened

    def receiver(self, receiver_id: str) -> BillingContact:
        """Return a billing receiver.

        Raises:
            UnknownBillingReceiver: the list has no such contact.
            BillingReceiverGone: the contact was erased.
        """
        self.admit(receiver_id)
        if receiver_id not in self.receivers:
            known = ", ".join(self.receivers) or "none"
            raise UnknownBillingReceiver(f"There is no billing receiver {receiver_id}; the account has: {known}.")
        return self.receivers[receiver_id]

    def admit(self, receiver_id: str) -> None:
        """Check that the receiver of this id was not erased.

        Raises:
            BillingReceiverGone: it was; the id refers to that person for ever and is not reused.
        """
        if receiver_id in self.erased:
            raise BillingReceiverGone(f"The billing receiver {receiver_id} was erased; choose or add another one.")


class UnknownAccount(Refusal):
    """No account has this id."""


class AccountExists(Refusal):
    """Another company has this account id."""


class UnknownBillingReceiver(Refusal):
    """The account's list has no such contact."""


class BillingReceiverExists(Refusal):
    """Another contact of the list has this id."""


class BillingReceiverGone(Refusal):
    """The contact was erased, and its id is not reused."""


def decide(command: AccountCommand, account: Account) -> list[AccountEvent]:
    """The account's next events.

    Raises:
        Refusal: the command breaks a rule; the subclasses above are the reasons.
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
            raise BillingReceiverExists(
                f"The id {command.receiver_id} belongs to another contact; change that contact or choose a new id."
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
        raise AccountExists(f"The account id {command.account_id} belongs to {account.opened.name}; choose another id.")
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
