"""Every error that selfreward raises on purpose.

    SelfRewardError
    ├── UsageError           wrong command line or wrong call        exit 2, ValueError
    ├── ConfigError          a setting is wrong                      exit 2, ValueError
    ├── MissingExtraError    an optional package is not installed    exit 2, ImportError
    └── RunError             the run cannot go on                    exit 1, RuntimeError
        ├── DataError        a data file or row is wrong             exit 1, ValueError
        ├── ModelError       a model folder cannot be used           exit 1, OSError
        ├── EngineError      generation failed                       exit 1
        ├── TrainingError    training failed (non-finite loss, ...)  exit 1, ArithmeticError
        ├── DriftError       a finished stage belongs to other settings   exit 1
        ├── CorruptArtifactError  a stored artifact cannot be read   exit 1, OSError
        └── StoppedError     someone asked the run to stop           exit 1

A message names what was got, what is allowed and which setting to turn. Each class is also the
standard-library class that it specialises, so that callers can catch either.
"""


class SelfRewardError(Exception):
    """Base class. `exit_code` is what the command line returns: 1 failed, 2 wrong usage or config."""

    exit_code = 1


class UsageError(SelfRewardError, ValueError):
    """The command line or a call was wrong."""

    exit_code = 2


class ConfigError(SelfRewardError, ValueError):
    """A setting is unknown, has a wrong value, or contradicts another one."""

    exit_code = 2


class MissingExtraError(SelfRewardError, ImportError):
    """An optional package is needed; the message holds the pip command."""

    exit_code = 2


class RunError(SelfRewardError, RuntimeError):
    """The run cannot go on."""


class DataError(RunError, ValueError):
    """A data file is missing, malformed, or holds too little."""


class ModelError(RunError, OSError):
    """A model folder cannot be read, or holds no safe weights."""


class EngineError(RunError):
    """An engine could not generate."""


class TrainingError(RunError, ArithmeticError):
    """Training met a non-finite loss or has nothing to train on."""


class DriftError(RunError):
    """A finished stage was made with other settings, inputs or rubrics."""


class CorruptArtifactError(RunError, OSError):
    """A stored artifact is truncated, changed or missing."""


class StoppedError(RunError):
    """Someone asked the run to stop; it did, and nothing is lost."""
