"""The nouns. All are frozen; stages exchange lists of them, artifacts store them as rows.

Ids are stable: a completion's id is `<prompt id>/<index>`, so a record can be traced through every stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "error"]
RequestError = Literal["too_long", "content_filter"]
"""Why one request has no reply although its engine works. `too_long`: the prompt leaves no room in the context;
`content_filter`: the server withheld the reply."""
REQUEST_ERRORS: frozenset[str] = frozenset(get_args(RequestError))
VoteFailure = Literal["no_score", "out_of_range", "truncated", "empty", "too_long", "content_filter", "off_scale"]
"""Why a vote has no score. `truncated`: the reply hit the token limit before a verdict;
`too_long`: the judge prompt does not fit the context, nothing was generated; `content_filter`: the judge's server withheld
the reply; `off_scale`: the model gives the legal scores less probability than `judge.min_mass`."""

VerdictFailure = Literal["no_verdict", "truncated", "empty", "too_long", "content_filter"]
"""Why a pairwise judge's reply has no verdict; the names mean what they mean for votes."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """An instruction. `source` says where it came from: `ift`, `self_instruct`, `heldout`, `file`."""

    id: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One instruction fine-tuning (IFT) pair."""

    id: str
    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class RankedSet:
    """One prompt with human-ranked responses. `ranks[i]` belongs to `responses[i]`; 0 is best, equal = tied."""

    id: str
    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EftExample:
    """One evaluation fine-tuning (EFT) target: `judgement` is the text that the judge shall write."""

    id: str
    instruction: str
    response: str
    judgement: str
    score: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding settings. `temperature` 0 means greedy; `top_k` 0 means no limit. `stop` strings end a reply
    and are cut from its text. `ignore_eos` goes on past control tokens until `max_tokens`, which only benchmarks want.
    `logprobs` asks for the log-probability of every token of the reply."""

    max_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One reply wanted. `prompt` is a conversation (rendered with the chat template, generation prompt added)
    or plain text (continued as it stands). Requests with equal prompts share their prefill.
    `seed` alone decides this request's random numbers, whatever its neighbours are.

    `reply_prefix` is text that the reply is made to begin with; it is not part of the generation's text. With `choices`
    nothing is sampled: the probability of each of these continuations of prompt and prefix is wanted instead. A choice ends
    where its last word ends: `1` is not said by a reply that goes on with `10`, but it is by `1.` or `1 point`."""

    id: str
    prompt: tuple[Message, ...] | str
    sampling: Sampling
    seed: int
    reply_prefix: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """An engine's reply to one request. `text` has no special tokens and no stop string.
    `finish_reason`: `stop` (any control token or a stop string), `length` (max_tokens or context reached),
    `error` (there is no reply; `error` names why, see `RequestError`; other names mean that the engine failed).
    Token counts are None where a server does not tell them: unknown, not 0.
    For a request with choices `choice_logprobs` holds the natural logarithm of each one's probability, in their order (-inf
    for 0); `text` is empty then, `num_tokens` 0, and `num_prompt_tokens` counts all tokens that the model read, choices too.
    `token_logprobs`, where asked for, holds one natural logarithm a token: how probable the model itself found it, before
    temperature, top-k and top-p; None where the engine's server does not tell."""

    request_id: str
    text: str
    num_prompt_tokens: int | None
    num_tokens: int | None
    finish_reason: FinishReason
    error: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One candidate response of a round."""

    id: str
    prompt_id: str
    prompt: str
    index: int
    text: str
    num_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Attempt:
    """A judge's reply without a score that was asked for again."""

    text: str
    failure: VoteFailure
    num_tokens: int | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Vote:
    """One judgement of one response: its raw text and a score, or a named failure; never both. `num_tokens` is None where the
    judge's server does not tell it. `member` names who gave it by which rubric (`m1 additive`); `attempts` are its earlier
    replies, all failed, oldest first.

    With `judge.mode=expected`, `mass` is the probability that the model gave to the legal scores together, `distribution`
    their shares of it (lowest score first), and `score` the mean of that distribution; None for sampled scores."""

    index: int
    text: str
    score: float | None
    failure: VoteFailure | None
    num_tokens: int | None
    finish_reason: FinishReason
    member: str = ""
    attempts: tuple[Attempt, ...] = ()
    mass: float | None = None
    distribution: tuple[float, ...] | None = None

    @property
    def histogram_score(self) -> float | None:
        """The score to count the vote at: an expected score at the nearest whole one."""
        return self.score if self.score is None or self.mass is None else float(floor(self.score + 0.5))


@dataclass(frozen=True, slots=True)
class Judgement:
    """All votes on one response. `score` sums the valid ones up as `judge.aggregate` says; None when there are fewer than
    `judge.min_votes`, of any member of a panel."""

    completion_id: str
    votes: tuple[Vote, ...]
    score: float | None

    @property
    def num_valid(self) -> int:
        """Votes that carry a score."""
        return sum(vote.score is not None for vote in self.votes)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Chosen over rejected for one conversation. `kind` is `answer` for the policy's own answers and
    `judgement` for judge replies (then `messages` hold the filled judge prompt)."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    chosen_id: str
    rejected_id: str
    kind: Literal["answer", "judgement"] = "answer"


@dataclass(frozen=True, slots=True)
class Drop:
    """One item that left the pipeline, with its reason. `item` is a JSON text of what was dropped."""

    id: str
    reason: str
    item: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval [low, high] from n items; None where n is too small to say."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Bookkeeping of a stage: `num_in == num_out + sum(dropped.values())` always holds."""

    num_in: int
    num_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.num_out + sum(self.dropped.values())
        assert self.num_in == total, f"counts do not add up: {self.num_in} in, {total} out + dropped"


@dataclass(frozen=True, slots=True)
class EvalOutput:
    """A model's response to one held-out prompt. `kind`: `sampled` (the run's sampling settings) or `greedy`.
    `oracle` is the micro-world's score, None where there is no oracle or it has no opinion."""

    prompt_id: str
    prompt: str
    kind: Literal["sampled", "greedy"]
    text: str
    num_tokens: int
    finish_reason: FinishReason
    oracle: float | None


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure on one unit (a prompt, a ranked set, a pair): the mean of its `weight` observations there."""

    figure: str
    unit: str
    value: float
    weight: float
