"""The eventsourcing library's own test cases for recorders, run on ours: in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from eventsourcing.tests.persistence import (
    ApplicationRecorderTestCase,
    NonInterleavingNotificationIDsBaseCase,
    ProcessRecorderTestCase,
    TrackingRecorderTestCase,
)

from infra.event_log.memory_recorder import MemoryRecorder
from infra.event_log.postgres_recorder import PostgresRecorder
from infra.event_log.recorder import Recorder


class InMemory:
    def create_recorder(self) -> Recorder:
        return MemoryRecorder()

    def new_originator_id(self) -> str:
        return str(uuid4())


class OnPostgres:
    @pytest.fixture(autouse=True)
    def _recorder(self, database_url: str) -> Iterator[None]:
        with PostgresRecorder(database_url) as self.recorder:
            yield

    def create_recorder(self) -> Recorder:
        return self.recorder

    def new_originator_id(self) -> str:
        return str(uuid4())


class TestApplicationRecorderInMemory(InMemory, ApplicationRecorderTestCase[Recorder]):
    def test_subscribing(self) -> None:
        self.optional_test_insert_subscribe()


class TestApplicationRecorderOnPostgres(OnPostgres, ApplicationRecorderTestCase[Recorder]):
    def test_subscribing(self) -> None:
        self.optional_test_insert_subscribe()


class TestTrackingRecorderInMemory(InMemory, TrackingRecorderTestCase):
    pass


class TestTrackingRecorderOnPostgres(OnPostgres, TrackingRecorderTestCase):
    pass


class TestProcessRecorderInMemory(InMemory, ProcessRecorderTestCase):
    pass


class TestProcessRecorderOnPostgres(OnPostgres, ProcessRecorderTestCase):
    pass


class TestNotificationsOfTwoAppendsInMemory(InMemory, NonInterleavingNotificationIDsBaseCase):
    pass


class TestNotificationsOfTwoAppendsOnPostgres(OnPostgres, NonInterleavingNotificationIDsBaseCase):
    pass
