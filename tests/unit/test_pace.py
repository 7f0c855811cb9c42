"""pace.py: a rate and a remaining time that are honest, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.pace import KNOWN_SECONDS, WINDOW_PIECES, WINDOW_SECONDS, Pace, Remaining


def paced(total, pieces, now=0.0):
    """A task whose pieces are (items, seconds each); its pace, and the time."""
    pace = Pace(total, now)
    for count, seconds in pieces:
        now += seconds
        pace.finish(count, now)
    return pace, now


def test_nothing_is_said_before_it_is_known():
    pace = Pace(100, 0.0)
    assert (pace.rate(5.0), pace.remaining(5.0)) == (None, None)
    pace.finish(50, KNOWN_SECONDS / 2)
    assert pace.remaining(KNOWN_SECONDS / 2) is None, "so short a time says little"
    assert Pace(None, 0.0).remaining(50.0) is None
    unbounded, now = paced(None, [(10, 5.0)])
    assert unbounded.rate(now) == 2.0
    assert unbounded.remaining(now) is None


def test_whole_pieces_give_the_remaining_time():
    pace, now = paced(100, [(10, 5.0), (10, 5.0)])
    assert pace.remaining(now) == Remaining(40.0, False)
    assert pace.remaining(now + 3) == Remaining(37.0, False), "it counts down inside a piece"


def test_a_piece_that_takes_long_stops_the_clock_and_the_last_one_ends_it():
    pace, now = paced(30, [(10, 5.0)])
    assert pace.remaining(now + 5) == Remaining(5.0, False)
    assert pace.remaining(now + 60) == Remaining(5.0, False), "the piece behind the open one still takes its time"
    pace.finish(10, now + 60)
    assert pace.remaining(now + 200) is None, "nobody knows when a last piece ends that is overdue"


def test_the_recent_pieces_count():
    slow_then_fast, now = paced(1000, [(10, 20.0)] * 5 + [(10, 1.0)] * 40)
    assert slow_then_fast.rate(now) == pytest.approx(10.0)
    fast_then_slow, now = paced(1000, [(10, 1.0)] * 40 + [(10, 20.0)] * 5)
    assert fast_then_slow.rate(now) == pytest.approx(0.5)


def test_a_first_piece_gives_a_bound_because_the_longest_come_first():
    pace = Pace(200, 0.0)
    pace.within(5)
    assert pace.remaining(10.0) is None, "one in forty says too little"
    pace.within(20)
    pace.within(10)
    assert pace.remaining(10.0) == Remaining(90.0, True), "never backwards"
    assert pace.done == 20
    pace.finish(100, 40.0)
    assert pace.remaining(40.0) == Remaining(40.0, False)
    assert pace.done == 100


def test_what_was_found_says_nothing_about_the_pace():
    pace = Pace(100, 0.0)
    pace.found(80, 1.0)
    assert (pace.rate(4.0), pace.remaining(4.0)) == (None, None)
    pace.finish(10, 11.0)
    assert pace.rate(11.0) == 1.0, "the time of finding counts for nothing either"
    assert pace.remaining(11.0) == Remaining(10.0, False)
    assert pace.done == 90


PIECES = st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 60.0)), min_size=1, max_size=30)


@given(PIECES, st.integers(0, 500), st.floats(0, 100))
def test_the_remaining_time_is_never_negative_nor_beyond_the_slowest_piece(pieces, left, later):
    total = sum(count for count, _ in pieces) + left
    pace, now = paced(total, pieces)
    remaining = pace.remaining(now + later)
    slowest = max(seconds / count for count, seconds in pieces)
    if remaining is not None:
        assert 0 <= remaining.seconds <= left * slowest + 1e-6
        assert not remaining.is_bound
    recent = pieces[-WINDOW_PIECES:]
    rate = pace.rate(now)
    assert rate is not None
    if sum(seconds for _, seconds in recent) > WINDOW_SECONDS and len(pieces) > WINDOW_PIECES:
        assert rate == pytest.approx(sum(count for count, _ in recent) / sum(seconds for _, seconds in recent))
