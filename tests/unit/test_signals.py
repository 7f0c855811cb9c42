"""signals.py: what one and two signals do, and that nothing is left behind. e2e/test_run_control.py has real processes."""

import os
import signal
import threading

import pytest

from selfreward.signals import stopping_on_signals
from selfreward.stopping import Stop


@pytest.fixture(autouse=True)
def default_handlers() -> None:
    """A test run in the background of a shell ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_signal_asks_and_the_second_interrupts(
    number: signal.Signals, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = Stop()
    with stopping_on_signals(stop):
        os.kill(os.getpid(), number)
        assert stop.reason == name
        assert "finishing the current part" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert capfd.readouterr().err == "", "said once"


def test_handlers_are_as_before_behind_the_block() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with stopping_on_signals(Stop()):
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = Stop()
    with stopping_on_signals(stop):
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop.is_wanted
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_only_the_main_thread_has_handlers() -> None:
    seen = []

    def work() -> None:
        with stopping_on_signals(Stop()):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
