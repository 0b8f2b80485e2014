import pytest
from pydantic import ValidationError

from domain.account import (
    ACCOUNT,
    ERASED_CONTACT,
    AccountCommand,
    AccountExists,
    BillingReceiverExists,
    BillingReceiverGone,
    UnknownAccount,
    UnknownBillingReceiver,
)
from tests.support.examples import (
    BUCKET,
    WONKA,
    add_receiver,
    bucket_added,
    bucket_default,
    change_receiver,
    choose_default,
    erase_receiver,
    open_account,
    opened,
    wonka_added,
    wonka_changed,
    wonka_default,
    wonka_erased,
)
from tests.support.given_domain import but, given

HISTORY = (opened, wonka_added, wonka_default)


def test_an_account_opens_with_its_first_contact_as_the_default() -> None:
    acme = given(ACCOUNT).when(open_account).then(opened, wonka_added, wonka_default)
    assert acme.state.default_receiver_id == "wonka"
    assert acme.state.receiver("wonka") == WONKA


def test_an_account_opened_twice_is_opened_once() -> None:
    given(ACCOUNT, *HISTORY).when(open_account).then_nothing()


def test_an_account_id_belongs_to_one_company() -> None:
    given(ACCOUNT, *HISTORY).when(but(open_account, name="Slugworth")).then_refused(
        AccountExists, saying="The account id acme belongs to ACME"
    )


def test_the_second_of_two_companies_that_claim_an_id_at_once_is_refused() -> None:
    slugworth = but(open_account, name="Slugworth")
    given(ACCOUNT).when(slugworth).losing_to(open_account).then_refused(AccountExists, saying="choose another id")


def test_an_account_opened_twice_at_once_is_opened_once() -> None:
    given(ACCOUNT).when(open_account).losing_to(open_account).then_nothing()


def test_a_contact_joins_the_list_and_the_default_stays() -> None:
    acme = given(ACCOUNT, *HISTORY).when(add_receiver).then(bucket_added)
    assert list(acme.state.receivers) == ["wonka", "bucket"]
    assert acme.state.default_receiver_id == "wonka"


def test_a_contact_added_twice_is_added_once() -> None:
    given(ACCOUNT, *HISTORY, bucket_added).when(add_receiver).then_nothing()


def test_a_contact_cannot_join_an_unknown_account() -> None:
    given(ACCOUNT).when(add_receiver).then_refused(UnknownAccount, saying="no account acme")


def test_a_contact_does_not_take_the_id_of_another() -> None:
    given(ACCOUNT, *HISTORY).when(but(add_receiver, receiver_id="wonka")).then_refused(
        BillingReceiverExists, saying="The id wonka belongs to another contact"
    )


def test_the_second_of_two_contacts_added_at_once_with_one_id_is_refused() -> None:
    given(ACCOUNT, *HISTORY).when(add_receiver).losing_to(but(add_receiver, contact=WONKA)).then_refused(
        BillingReceiverExists, saying="choose a new id"
    )


def test_two_contacts_added_at_once_both_join() -> None:
    salt = but(add_receiver, receiver_id="salt")
    given(ACCOUNT, *HISTORY).when(add_receiver).losing_to(salt).then(bucket_added)


def test_a_contact_is_corrected() -> None:
    acme = given(ACCOUNT, *HISTORY).when(change_receiver).then(wonka_changed)
    assert acme.state.receiver("wonka") == BUCKET


def test_a_contact_corrected_twice_is_corrected_once() -> None:
    given(ACCOUNT, *HISTORY, wonka_changed).when(change_receiver).then_nothing()


def test_a_contact_of_an_unknown_account_cannot_be_corrected() -> None:
    given(ACCOUNT).when(change_receiver).then_refused(UnknownAccount, saying="open it first")


def test_an_unknown_contact_cannot_be_corrected() -> None:
    given(ACCOUNT, *HISTORY).when(but(change_receiver, receiver_id="salt")).then_refused(
        UnknownBillingReceiver, saying="no billing receiver salt; the account has: wonka"
    )


def test_the_later_of_two_corrections_at_once_holds() -> None:
    moved = but(change_receiver, contact=but(WONKA, address=("Fudge Lane 3", "20457 Hamburg")))
    acme = given(ACCOUNT, *HISTORY).when(change_receiver).losing_to(moved).then(wonka_changed)
    assert acme.state.receiver("wonka") == BUCKET


def test_another_contact_becomes_the_default() -> None:
    acme = given(ACCOUNT, *HISTORY, bucket_added).when(choose_default).then(bucket_default)
    assert acme.state.default_receiver_id == "bucket"


def test_the_default_chosen_twice_is_chosen_once() -> None:
    given(ACCOUNT, *HISTORY, bucket_added, bucket_default).when(choose_default).then_nothing()


def test_an_unknown_account_has_no_default_contact() -> None:
    given(ACCOUNT).when(choose_default).then_refused(UnknownAccount, saying="no account acme")


def test_an_unknown_contact_cannot_become_the_default() -> None:
    given(ACCOUNT, *HISTORY).when(choose_default).then_refused(UnknownBillingReceiver, saying="receiver bucket")


def test_the_later_of_two_defaults_chosen_at_once_holds() -> None:
    salt_added = but(bucket_added, receiver_id="salt")
    salt = but(choose_default, receiver_id="salt")
    acme = given(ACCOUNT, *HISTORY, bucket_added, salt_added).when(choose_default).losing_to(salt).then(bucket_default)
    assert acme.state.default_receiver_id == "bucket"


# --- erasure -------------------------------------------------------------------------------------------------------


def test_an_erased_contact_leaves_the_list_and_the_others_stay() -> None:
    acme = given(ACCOUNT, *HISTORY, bucket_added).when(erase_receiver).then(wonka_erased)
    assert list(acme.state.receivers) == ["bucket"]


def test_after_the_default_is_erased_there_is_none_until_another_is_chosen() -> None:
    acme = given(ACCOUNT, *HISTORY, bucket_added).when(erase_receiver).then(wonka_erased)
    assert acme.state.default_receiver_id is None
    assert acme.when(choose_default).then(bucket_default).state.default_receiver_id == "bucket"


def test_erasing_another_contact_keeps_the_default() -> None:
    acme = given(ACCOUNT, *HISTORY, bucket_added).when(but(erase_receiver, receiver_id="bucket"))
    assert acme.after.state.default_receiver_id == "wonka"


def test_a_contact_erased_twice_is_erased_once() -> None:
    given(ACCOUNT, *HISTORY, wonka_erased).when(erase_receiver).then_nothing()


def test_a_contact_of_an_unknown_account_cannot_be_erased() -> None:
    given(ACCOUNT).when(erase_receiver).then_refused(UnknownAccount, saying="no account acme")


def test_an_unknown_contact_cannot_be_erased() -> None:
    given(ACCOUNT, *HISTORY).when(but(erase_receiver, receiver_id="salt")).then_refused(
        UnknownBillingReceiver, saying="no billing receiver salt; the account has: wonka"
    )


@pytest.mark.parametrize(
    "command",
    [
        but(add_receiver, receiver_id="wonka"),
        but(add_receiver, receiver_id="wonka", contact=WONKA),
        change_receiver,
        but(choose_default, receiver_id="wonka"),
    ],
    ids=["another one of the same name", "the same one", "changed", "the default"],
)
def test_an_erased_contact_never_returns_to_the_list(command: AccountCommand) -> None:
    erased = given(ACCOUNT, *HISTORY, bucket_added, wonka_erased)
    erased.when(command).then_refused(BillingReceiverGone, saying="wonka was erased; choose or add another one")


def test_a_contact_changed_while_it_is_erased_comes_too_late() -> None:
    given(ACCOUNT, *HISTORY).when(change_receiver).losing_to(erase_receiver).then_refused(
        BillingReceiverGone, saying="was erased"
    )


def test_an_erased_contact_is_recognised_by_its_placeholder_address() -> None:
    assert ERASED_CONTACT.erased
    assert not WONKA.erased
    assert ERASED_CONTACT.email.endswith(".invalid")


@pytest.mark.parametrize(
    "email", ["wonka", "wonka@", "@acme.example", "wonka@acme", "wonka @acme.example", "wonka@acme.example\n"]
)
def test_an_invalid_email_address_is_rejected(email: str) -> None:
    with pytest.raises(ValidationError):
        but(WONKA, email=email)
