"""progress.py: what a person sees."""

import io
from contextlib import suppress

import pytest
from rich.console import Console

from selfreward.progress import NullProgress, RichProgress


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
