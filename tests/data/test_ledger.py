"""The ledger: every row and every token is somewhere (P4)."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.data.conversation import Refused
from fastling.data.encoding import Encoded, Unproved
from fastling.data.ledger import Ledger


def encoded(tokens: int, spans: list[tuple[int, int]], **dropped: int) -> Encoded:
    turns = tuple(range(len(spans)))
    spans = numpy.array(spans, numpy.int32).reshape(-1, 2)
    return Encoded(numpy.zeros(tokens, numpy.uint32), spans, turns, dropped)


RESULTS = st.one_of(
    st.builds(Refused, st.sampled_from(["broken-json", "empty-turn"])),
    st.builds(Unproved, st.sampled_from(["too-long", "does-not-decode"]), st.just(""), st.integers(0, 99)),
    st.builds(
        lambda start, size, rest, dropped: encoded(start + size + rest, [(start, start + size)], **dropped),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(0, 9),
        st.dictionaries(st.sampled_from(["over_length", "after_last_answer"]), st.integers(1, 9)),
    ),
)


def test_tokens_in_are_trained_masked_or_dropped():
    ledger = Ledger()
    ledger.add(encoded(10, [(4, 6), (8, 10)]))
    ledger.add(encoded(7, [(4, 7)], over_length=5))
    ledger.add(Refused("empty-turn"))  # never tokenized: its tokens are not known
    ledger.add(Unproved("too-long", "", 100))
    ledger.check()
    assert ledger.as_dict() == {
        "rows": 4,
        "kept": 2,
        "cut": 1,
        "refused": {"empty-turn": 1, "too-long": 1},
        "tokens": 10 + 7 + 5 + 100,
        "trained": 4 + 3,
        "masked": 6 + 4,
        "dropped": {"over_length": 5, "too-long": 100},
    }


@given(results=st.lists(RESULTS))
def test_all_tokens_of_any_rows_are_accounted_for(results):
    ledger = Ledger()
    for result in results:
        ledger.add(result)
    ledger.check()
    assert ledger.rows == len(results)


@pytest.mark.parametrize("name", ["rows", "kept", "tokens", "trained", "masked"])
def test_a_row_or_token_that_went_missing_is_noticed(name):
    ledger = Ledger()
    ledger.add(encoded(7, [(4, 7)], over_length=5))
    ledger.check()
    setattr(ledger, name, getattr(ledger, name) + 1)
    with pytest.raises(AssertionError, match="Ledger"):
        ledger.check()
