"""errors.py: one tree, each class also the standard one that it specialises, exit codes as drawn."""

import inspect
import re

import pytest

from selfreward import errors

STANDARD = {
    errors.UsageError: ValueError,
    errors.ConfigError: ValueError,
    errors.MissingExtraError: ImportError,
    errors.RunError: RuntimeError,
    errors.DataError: ValueError,
    errors.ModelError: OSError,
    errors.EngineError: RuntimeError,
    errors.TrainingError: ArithmeticError,
    errors.DriftError: RuntimeError,
    errors.CorruptArtifactError: OSError,
    errors.StoppedError: RuntimeError,
}


def all_errors():
    return [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]


def test_every_class_is_ours_documented_and_drawn():
    assert set(all_errors()) == {errors.SelfRewardError, *STANDARD}
    for error in all_errors():
        assert issubclass(error, errors.SelfRewardError)
        assert error.__doc__
        assert error.__name__ in errors.__doc__


@pytest.mark.parametrize(("error", "standard"), STANDARD.items())
def test_callers_can_catch_the_standard_class_and_the_message_survives(error, standard):
    with pytest.raises(standard, match="got 3") as caught:
        raise error("got 3, allowed: 1 or 2")
    assert str(caught.value) == "got 3, allowed: 1 or 2"


@pytest.mark.parametrize("error", STANDARD)
def test_exit_codes_are_the_drawn_ones(error):
    drawn = re.search(rf"{error.__name__} .*exit (\d)", errors.__doc__)
    assert drawn
    assert error.exit_code == int(drawn[1])
    assert error.exit_code == (1 if issubclass(error, errors.RunError) else 2)
