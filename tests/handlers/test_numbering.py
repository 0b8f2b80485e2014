"""Numbers of documents made concurrently: in order and gapless, even if some fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from domain.invoice_series import INVOICE_SERIES, InvoiceNumberAssigned
from handlers.numbering import NumberSequencer
from infra.event_log.log import Log, VersionConflict
from infra.event_log.unit_of_work import UnitOfWork
from infra.recorded import Cause
from tests.support.examples import NOW
from tests.support.in_memory import SettableClock

CAUSE = Cause("system:test", "numbering")
SOON_S = 30.0


class Maker:
    """Makes documents concurrently."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._numbering = NumberSequencer()

    def make(self, document_id: str, making: Callable[[], object] = lambda: None) -> str:
        """Make a document, which takes as long as ``making`` does. Returns its number."""
        work = UnitOfWork(self._log)
        with self._numbering.reserve(work, SettableClock(), "YT", document_id) as turn:
            making()
            turn.wait()
            work.commit(account_id=None, cause=CAUSE, at=NOW)
        return turn.number

    @property
    def series(self) -> list[tuple[str, str]]:
        """The numbers in the log with their documents."""
        events = [recorded.event for recorded in self._log.load(INVOICE_SERIES.stream("YT-2026"))]
        return [(event.number, event.document_id) for event in events if isinstance(event, InvoiceNumberAssigned)]


@pytest.fixture(name="maker")
def _maker(log: Log) -> Maker:
    return Maker(log)


def test_documents_are_made_concurrently(maker: Maker) -> None:
    together = threading.Barrier(3, timeout=SOON_S)
    with ThreadPoolExecutor(3) as threads:
        numbers = set(threads.map(lambda name: maker.make(name, together.wait), "abc"))

    assert numbers == {"YT-2026-000001", "YT-2026-000002", "YT-2026-000003"}
    assert [number for number, _ in maker.series] == sorted(numbers)


def test_a_document_finished_early_waits_for_those_before_it(maker: Maker) -> None:
    begun, made = threading.Event(), threading.Event()

    def slowly() -> None:
        begun.set()
        made.wait(SOON_S)

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(maker.make, "slow", slowly)
        begun.wait(SOON_S)
        quick = threads.submit(maker.make, "quick")
        with pytest.raises(TimeoutError):
            quick.result(0.05)
        made.set()
        assert (slow.result(SOON_S), quick.result(SOON_S)) == ("YT-2026-000001", "YT-2026-000002")

    assert maker.series == [("YT-2026-000001", "slow"), ("YT-2026-000002", "quick")]


def test_after_a_failure_later_documents_conflict_and_the_number_goes_to_the_next(maker: Maker) -> None:
    begun, made = threading.Event(), threading.Event()
    numbered = threading.Barrier(3, timeout=SOON_S)

    def break_down() -> None:
        begun.set()
        made.wait(SOON_S)
        raise RuntimeError("out of paper")

    with ThreadPoolExecutor(3) as threads:
        broken = threads.submit(maker.make, "broken", break_down)
        begun.wait(SOON_S)
        behind = [threads.submit(maker.make, name, numbered.wait) for name in ("b", "c")]
        numbered.wait()
        made.set()
        with pytest.raises(RuntimeError):
            broken.result(SOON_S)
        for each in behind:
            with pytest.raises(VersionConflict):
                each.result(SOON_S)

    assert maker.series == []
    assert [maker.make("b"), maker.make("c")] == ["YT-2026-000001", "YT-2026-000002"]


def test_after_an_early_failure_the_number_goes_to_the_next_without_a_conflict(maker: Maker) -> None:
    begun, made = threading.Event(), threading.Event()

    def slowly() -> None:
        begun.set()
        made.wait(SOON_S)

    def break_down() -> None:
        raise RuntimeError("out of paper")

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(maker.make, "slow", slowly)
        begun.wait(SOON_S)
        with pytest.raises(RuntimeError):
            maker.make("broken", break_down)
        assert maker.make("next", made.set) == "YT-2026-000002"
        assert slow.result(SOON_S) == "YT-2026-000001"

    assert maker.series == [("YT-2026-000001", "slow"), ("YT-2026-000002", "next")]


def test_if_another_process_was_faster_the_number_is_taken_again(maker: Maker, log: Log) -> None:
    with pytest.raises(VersionConflict):
        maker.make("ours", lambda: Maker(log).make("theirs"))

    assert maker.make("ours") == "YT-2026-000002"
    assert maker.series == [("YT-2026-000001", "theirs"), ("YT-2026-000002", "ours")]
