"""Who can talk: the one interface between stages and whatever generates text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from selfreward.errors import UsageError
from selfreward.types import Generation, Request


@dataclass(frozen=True, slots=True)
class Shortage:
    """A batch did not fit into memory: its rows, the most rows at a time from then on, and its longest prompt in tokens."""

    num_rows: int
    most: int
    longest: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine did since it was last asked. `asked_tokens`: tokens of all prompts, each counted for each of its
    requests; `read_tokens`: prompt tokens that the model really read, shared beginnings once; `generated_tokens`: tokens of
    all replies. Seconds are wall time; engines that cannot tell the two phases apart count all of it as decoding. Work that a
    lack of memory lost counts in what was read and in the seconds, not in what was asked and generated.
    """

    asked_tokens: int = 0
    read_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.asked_tokens + other.asked_tokens,
            self.read_tokens + other.read_tokens,
            self.generated_tokens + other.generated_tokens,
            self.prefill_seconds + other.prefill_seconds,
            self.decode_seconds + other.decode_seconds,
        )


class Engine(Protocol):
    """Answers requests. Engines are context managers; leaving the context closes them."""

    @property
    def context_length(self) -> int:
        """Most tokens that a prompt and its reply may have together."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer every request exactly once, in any order, as soon as it is ready.

        A prompt that leaves no room for a reply gives a Generation with the error `too_long`. Raises UsageError for requests
        that no engine could answer (see `check_requests`) and EngineError when generation fails. Engines that cannot score
        `choices` are not in `SCORES_CHOICES` and refuse them with EngineError.
        """
        ...

    def take_shortages(self) -> list[Shortage]:
        """Shortages of memory since the last call that smaller batches mended; none for engines without batches."""
        return []

    def take_usage(self) -> Usage | None:
        """What was done since the last call; None for engines that do not measure it."""
        return None

    def take_lost_tokens(self) -> int:
        """Tokens since the last call that a server charged for answers which nobody can read: no reply counts them."""
        return 0

    def close(self) -> None:
        """Give back memory and devices. Closing twice is allowed; generating afterwards raises EngineError."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def check_requests(requests: Sequence[Request]) -> None:
    """Raise UsageError for two requests with one id, and for decoding settings or choices without a meaning."""
    known: set[str] = set()
    for request in requests:
        if request.id in known:
            raise UsageError(f"two requests have the id {request.id!r}; ids must differ")
        known.add(request.id)
        sampling = request.sampling
        for name, value, allowed, is_allowed in (
            ("max_tokens", sampling.max_tokens, "at least 1", sampling.max_tokens >= 1),
            ("temperature", sampling.temperature, "at least 0", 0 <= sampling.temperature < float("inf")),
            ("top_p", sampling.top_p, "above 0 and at most 1", 0 < sampling.top_p <= 1),
            ("top_k", sampling.top_k, "at least 0", sampling.top_k >= 0),
            ("stop", sampling.stop, "texts that are not empty", "" not in sampling.stop),
        ):
            if not is_allowed:
                raise UsageError(f"request {request.id!r} has {name}={value!r}; it must be {allowed}")
        _check_choices(request)


def _check_choices(request: Request) -> None:
    """Raise UsageError for choices that are empty, equal, or that another one goes on from after the end of a word."""
    choices = request.choices
    if len(set(choices)) != len(choices) or any(not text.strip() for text in choices):
        raise UsageError(f"request {request.id!r} has choices={choices!r}; they must differ, and none may be blank")
    for text in choices:
        longer = next((other for other in choices if other != text and other.startswith(text)), None)
        if longer is not None and not is_same_word(longer[len(text)]):
            raise UsageError(
                f"request {request.id!r} has the choices {text!r} and {longer!r}: a reply with the second one says both; "
                "choices must part before the end of a word"
            )


def is_same_word(character: str) -> bool:
    """Whether this character, right behind a word, belongs to it."""
    return character.isalnum()


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether one was there."""
    found = [position for position in map(text.find, stop) if position >= 0]
    return (text[: min(found)], True) if found else (text, False)
