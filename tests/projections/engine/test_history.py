"""The history generator: deterministic for a seed, realistic enough, and written through the log."""

from __future__ import annotations

from collections import Counter

from benchmarks.history import MASTER_KEY, history, write
from domain.messages import Event
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.topics import topics
from infra.recorded import Recorded
from projections.maintenance.runner import PROJECTIONS
from tests.support.databases import ServerAddresses, as_program, fresh_database


def test_the_same_seed_makes_the_same_history_and_another_seed_another() -> None:
    assert list(history(5, seed=1)) == list(history(5, seed=1))
    assert list(history(5, seed=1)) != list(history(5, seed=2))


def test_every_stream_is_gapless_and_belongs_to_one_account_or_to_a_seller() -> None:
    versions, owners = Counter[str](), dict[str, str | None]()
    for unit in history(40, seed=1):
        assert unit
        for recorded in unit:
            versions[recorded.stream] += 1
            assert recorded.version == versions[recorded.stream]
            if not recorded.stream.startswith("invoice_series"):
                assert owners.setdefault(recorded.stream, recorded.account_id) == recorded.account_id


def test_almost_everything_that_can_happen_happens() -> None:
    told = {type(recorded.event) for unit in history(120, seed=1) for recorded in unit}
    read = {kind for projection in PROJECTIONS for kind in projection.kinds if projection.events != (Event,)}
    assert {kind.__name__ for kind in read - told} <= {"LinkRevoked", "BillingReceiverErased"}
    assert len(told) > len(topics()) * 0.8


def test_it_is_written_through_the_log_at_the_same_positions_each_time(
    postgres: Log, database_url: str, servers: ServerAddresses, template: str
) -> None:
    def written(log: Log, url: str) -> list[Recorded]:
        assert write(url, log, history(6, seed=3)) == log.head()
        return list(log.history())

    with fresh_database(servers, template) as owner_url:
        url = as_program(owner_url)
        with postgres_log(url, master_key=MASTER_KEY) as other:
            told = written(postgres, database_url)
            assert told == written(other, url)
    events = Counter((recorded.stream, recorded.version) for recorded in told)
    assert events == Counter((recorded.stream, recorded.version) for unit in history(6, seed=3) for recorded in unit)
