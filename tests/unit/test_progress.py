"""progress.py: what a person sees."""

import io
import re
from contextlib import suppress

import pytest
from rich.console import Console

from selfreward.progress import NullProgress, RichProgress, Watched, time_text


def shown(terminal, done=10):
    """What a task of 10 items with a task inside it writes when `done` items succeed and the next one fails."""
    file = io.StringIO()
    progress = RichProgress(Console(file=file, force_terminal=terminal, width=100))
    with suppress(KeyError), progress.task("round-1: [judge]", 10) as advance:
        with progress.task("inner", 2) as inner:
            inner(2)
        advance(4)
        advance({10: 6}[done])
    return file.getvalue()


def test_plain_lines_off_a_terminal():
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 2, "one line for each finished task"
    assert lines[0].startswith("inner: 2/2 in ")
    assert lines[1].startswith("round-1: [judge]: 10/10 in ")
    assert lines[1].endswith("/s)")
    assert "10/10" not in shown(terminal=False, done=4)


@pytest.mark.parametrize("done", [10, 4])
def test_bars_on_a_terminal_nest_and_give_the_terminal_back(done):
    text = shown(terminal=True, done=done)
    assert "[judge]" in text
    assert ("10/10" in text) == (done == 10)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 1, "the cursor comes back"


def test_null_progress_shows_nothing(capsys):
    with NullProgress().task("x", 3) as advance:
        advance(3)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


class Clock:
    """A time that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def frames(text):
    """What a terminal of 80 columns was shown, line by line, without its control codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_bars_fit_into_80_columns_with_rate_and_remaining_time():
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=80)
    with RichProgress(console, clock).task("round-12/judgements: votes", 120_000) as steps:
        steps.found(40_000)
        clock.now = 1.0
        steps.within(1_000)
        clock.now = 3600.0
        steps(40_000)
        console.print("now")
    lines = frames(file.getvalue())
    assert max(map(len, lines)) <= 80
    assert any("round-12/judgements: votes" in line and "80000/120000" in line for line in lines)
    assert any("11.1/s 1:00:00 left" in line for line in lines), lines[-3:]


def test_a_first_piece_shows_a_bound():
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=80)
    with RichProgress(console, clock).task("round-1/samples: candidates", 100) as steps:
        clock.now = 10.0
        steps.within(20)
        console.print("now")
    assert any("20/100" in line and "2.0/s <0:40 left" in line for line in frames(file.getvalue()))


def test_found_items_are_no_rate_off_a_terminal():
    file, clock = io.StringIO(), Clock()
    with RichProgress(Console(file=file, force_terminal=False, width=100), clock).task("votes", 10) as steps:
        steps.found(6)
        clock.now = 8.0
        steps(4)
    assert file.getvalue() == "votes: 10/10 in 8.0 s (30.0/min, 6 done before)\n"


def test_a_watched_progress_names_the_stage_and_measures():
    file, clock = io.StringIO(), Clock()
    watched = Watched(RichProgress(Console(file=file, force_terminal=False, width=100), clock), "m1")
    with watched.task("fine-tuning", 3) as steps:
        steps.found(2)  # an earlier attempt's steps
        clock.now = 2.0
        steps(1)
    watched.say("hello")
    assert file.getvalue() == "m1: fine-tuning: 3/3 in 2.0 s (30.0/min, 2 done before)\nm1: hello\n"
    assert watched.seconds > 0
    before = watched.seconds
    with suppress(KeyError), watched.task("again", 1):
        raise KeyError
    assert watched.seconds > before, "a training that fails took its time too"


def test_a_fresh_training_found_nothing_done_before():
    file, clock = io.StringIO(), Clock()
    watched = Watched(RichProgress(Console(file=file, force_terminal=False, width=100), clock), "m1")
    with watched.task("reference log-probabilities", 16) as steps:
        clock.now = 8.0
        steps(16)
    with watched.task("fine-tuning", 4) as steps:
        clock.now += 5.0
        steps(1)
        clock.now += 3.0
        steps(3)
    assert file.getvalue().splitlines() == [
        "m1: reference log-probabilities: 16/16 in 8.0 s (2.0/s)",
        "m1: fine-tuning: 4/4 in 8.0 s (30.0/min)",
    ]


@pytest.mark.parametrize("resumed", [0, 40])
def test_a_trainings_first_step_is_no_pace(resumed):
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=80)
    with Watched(RichProgress(console, clock), "m1").task("fine-tuning", 100) as steps:
        if resumed:
            steps.found(resumed)
        clock.now = 50.0
        steps(1)
        clock.now = 60.0
        steps(10)
        console.print("now")
    left = "0:49" if resumed else "1:29"
    assert any(f"1.0/s {left} left" in line for line in frames(file.getvalue())), frames(file.getvalue())[-3:]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (3599.7, "1:00:00"), (90061, "25:01:01")]
)
def test_times(seconds, text):
    assert time_text(seconds) == text
