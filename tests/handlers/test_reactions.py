"""The names of reactions are stored: by durable consumers on the broker, and in the ids of the inbox."""

from __future__ import annotations

from handlers.reactions import REACTIONS


def test_the_names_of_reactions_never_change() -> None:
    """A new name would create a new consumer, which reads the stream from its start and mails everything again."""
    assert {(event.TOPIC, reaction.name) for event, reactions in REACTIONS.items() for reaction in reactions} == {
        ("order.OrderPlaced.v1", "tell_account_manager"),
        ("order.PaymentCaptured.v1", "fulfil_order"),
        ("order.OrderFulfilled.v1", "issue_invoice"),
        ("invoice_link.LinkIssued.v1", "mail_invoice"),
        ("order.PaymentRefunded.v1", "reverse_grant"),
        ("order.PaymentRefunded.v1", "issue_credit_note"),
        ("invoice.CreditNoteIssued.v1", "mail_credit_note"),
    }


def test_reaction_names_are_unique() -> None:
    names = [reaction.name for reactions in REACTIONS.values() for reaction in reactions]
    assert len(set(names)) == len(names)


def test_documents_are_numbered_by_the_two_reactions_that_issue_one() -> None:
    numbered = [reaction.name for reactions in REACTIONS.values() for reaction in reactions if reaction.numbered]
    assert numbered == ["issue_invoice", "issue_credit_note"]
