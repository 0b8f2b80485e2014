from datetime import timedelta

import pytest

from domain.invoice_link import INVOICE_LINK, LinkRefused, RefusalReason, RevokeLink, UnknownLink
from tests.support.examples import (
    LATER,
    NOW,
    consume,
    consumed,
    issue_link,
    link_issued,
    revoke,
    revoked,
)
from tests.support.given_domain import but, given

TOMORROW = NOW + timedelta(hours=24)


def refused(reason: RefusalReason) -> LinkRefused:
    return LinkRefused(link_id="link-1", reason=reason, refused_at=LATER)


def test_a_link_is_issued() -> None:
    given(INVOICE_LINK).when(issue_link).then(link_issued)


def test_a_link_issued_twice_is_issued_once() -> None:
    given(INVOICE_LINK, link_issued).when(issue_link).then_nothing()


def test_a_link_issued_twice_at_once_is_issued_once() -> None:
    another_token = but(issue_link, token_sha256="b0b" + 61 * "0")
    given(INVOICE_LINK).when(another_token).losing_to(issue_link).then_nothing()


def test_a_link_is_good_for_one_use_and_every_further_attempt_is_recorded() -> None:
    link = given(INVOICE_LINK, link_issued).when(consume).then(consumed)
    once_more = link.when(consume).then(refused(RefusalReason.USED))
    once_more.when(consume).then(refused(RefusalReason.USED))


def test_exactly_one_of_two_uses_at_once_wins() -> None:
    given(INVOICE_LINK, link_issued).when(consume).losing_to(consume).then(refused(RefusalReason.USED))


def test_a_link_is_good_until_a_moment_before_24_hours_have_passed() -> None:
    at = TOMORROW - timedelta(microseconds=1)
    given(INVOICE_LINK, link_issued).when(but(consume, at=at)).then(but(consumed, consumed_at=at))


def test_a_link_expires_after_24_hours() -> None:
    given(INVOICE_LINK, link_issued).when(but(consume, at=TOMORROW)).then(
        but(refused(RefusalReason.EXPIRED), refused_at=TOMORROW)
    )


def test_a_used_link_stays_used_after_it_expires() -> None:
    given(INVOICE_LINK, link_issued, consumed).when(but(consume, at=TOMORROW)).then(
        but(refused(RefusalReason.USED), refused_at=TOMORROW)
    )


def test_a_revoked_link_serves_nothing() -> None:
    given(INVOICE_LINK, link_issued, revoked).when(consume).then(refused(RefusalReason.REVOKED))


def test_a_use_that_loses_to_a_revocation_serves_nothing() -> None:
    given(INVOICE_LINK, link_issued).when(consume).losing_to(revoke).then(refused(RefusalReason.REVOKED))


@pytest.mark.parametrize("token_sha256", ["b0b" + 61 * "0", "", "a11cé"])
def test_an_unknown_token_an_unknown_link_and_a_spent_one_get_the_same_answer(token_sha256: str) -> None:
    stranger = but(consume, token_sha256=token_sha256)
    for history in ([], [link_issued], [link_issued, consumed], [link_issued, revoked]):
        given(INVOICE_LINK, *history).when(stranger).then_refused(UnknownLink, saying="This link is not valid")


def test_a_link_is_revoked() -> None:
    given(INVOICE_LINK, link_issued).when(revoke).then(revoked)


def test_a_link_revoked_twice_is_revoked_once() -> None:
    given(INVOICE_LINK, link_issued, revoked).when(revoke).then_nothing()


def test_a_link_that_was_never_issued_needs_no_revocation() -> None:
    given(INVOICE_LINK).when(revoke).then_nothing()


def test_a_revocation_that_loses_to_a_use_comes_too_late() -> None:
    given(INVOICE_LINK, link_issued).when(revoke).losing_to(consume).then_nothing()


def test_a_link_revoked_twice_at_once_is_revoked_once() -> None:
    later = RevokeLink(at=TOMORROW, link_id="link-1", replaced_by="link-2")
    given(INVOICE_LINK, link_issued).when(later).losing_to(revoke).then_nothing()
