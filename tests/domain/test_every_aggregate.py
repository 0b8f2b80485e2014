"""Properties of every aggregate, for any sequence of its commands."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import hypothesis
import pytest
from hypothesis import strategies as st

from domain.invoice_link import ConsumeLink
from tests.support.given_domain import When, given
from tests.support.strategies import AGGREGATES, Aggregate

some_sequences = hypothesis.settings(max_examples=40)
each_aggregate = pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)


def outcomes(aggregate: Aggregate, data: st.DataObject) -> Iterator[When[Any, Any, Any]]:
    """The outcome of each command in turn. `given` also checks that each event survives storage."""
    life = given(aggregate.decider)
    for command in data.draw(aggregate.sequences()):
        outcome = life.when(command)
        yield outcome
        life = outcome.after


@each_aggregate
def test_every_command_is_drawn(aggregate: Aggregate) -> None:
    category = aggregate.decider.category
    module = import_module(f"domain.{category}")
    union = getattr(module, f"{category.replace('_', ' ').title().replace(' ', '')}Command")
    assert set(aggregate.commands) == set(get_args(union) or (union,))


@each_aggregate
@some_sequences
@hypothesis.given(data=st.data())
def test_a_command_is_refused_with_a_sentence_or_returns_events_that_can_be_stored_and_applied(
    aggregate: Aggregate, data: st.DataObject
) -> None:
    for outcome in outcomes(aggregate, data):
        assert outcome.refusal is None or str(outcome.refusal).endswith(".")


@each_aggregate
@some_sequences
@hypothesis.given(data=st.data())
def test_a_command_repeated_after_its_own_events_returns_no_events(aggregate: Aggregate, data: st.DataObject) -> None:
    """All commands but one are idempotent: each use of an invoice link is recorded."""
    for outcome in outcomes(aggregate, data):
        if outcome.events and not isinstance(outcome.command, ConsumeLink):
            outcome.after.when(outcome.command).then_nothing()


@each_aggregate
@some_sequences
@hypothesis.given(data=st.data())
def test_decisions_are_deterministic(aggregate: Aggregate, data: st.DataObject) -> None:
    for outcome in outcomes(aggregate, data):
        again = outcome.given.when(outcome.command)
        assert (again.events, repr(again.refusal)) == (outcome.events, repr(outcome.refusal))
