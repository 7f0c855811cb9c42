"""A stop that somebody asked for."""

import pytest

from selfreward.errors import StoppedError
from selfreward.stopping import Stop


def test_a_stop_is_wanted_from_the_first_ask_on_and_keeps_its_reason():
    stop = Stop()
    stop.check()
    assert not stop.is_wanted
    stop.ask("SIGTERM")
    stop.ask("SIGINT")
    assert stop.is_wanted
    with pytest.raises(StoppedError, match="SIGTERM"):
        stop.check()
