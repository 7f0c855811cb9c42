"""A reply while it grows: when it ends, and what its text is."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from selfreward.chat import encode_prompt, reply_margins, special_ids
from selfreward.engines.base import cut_at_stop
from selfreward.types import FinishReason, Generation, Request

_HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers show for bytes that are not a whole character."""


class Reader:
    """Token ids to text, for one tokenizer.

    Any control token ends a reply, not only those that the template ends an answer with: a model that opens another turn
    has said what it had to say, and a text cannot show the token as what it is. The unknown word is no control token; it
    stays in the text as the tokenizer writes it (`<unk>`).
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        """`stop_ids` end a reply too, whatever they are."""
        self.stop_ids = stop_ids | special_ids(tokenizer)
        self._margins = reply_margins(tokenizer)
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def read(self, ids: Sequence[int]) -> str:
        """The text of these tokens, nothing left out."""
        # The tokenizer's clean-up would rewrite text (" ." to "."), which then trains and scores as something else.
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def answer(self, ids: Sequence[int], has_ended: bool) -> str:
        """The text of a chat reply without the template's white space around it; `ids` without the end token."""
        before, behind = self._margins
        text = self.read(ids).removeprefix(before)
        return text.removesuffix(behind) if has_ended else text

    def read_all(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each of many short token sequences; much faster than one by one."""
        return list(
            self.tokenizer.batch_decode(
                [list(ids) for ids in sequences], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def may_complete(self, token: int, stop: Sequence[str]) -> bool:
        """Whether a stop string can end at this token; much cheaper than to read the reply. True when in doubt."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.read([token])
        # A space belongs to no certain token: some tokenizers add and drop it where tokens meet.
        return _HALF_CHARACTER in piece or any(text[-1] in piece or text[-1] == " " for text in stop)


class Reply:
    """One request's reply: takes tokens until it ends."""

    @classmethod
    def begin(cls, request: Request, ids: Sequence[int], context_length: int, reader: Reader) -> "Reply":
        """A reply without a token yet. `ids` are the prompt's and the reply prefix's."""
        limit = min(request.sampling.max_tokens, context_length - len(ids))
        prefix_ids: Sequence[int] = ()
        if request.reply_prefix:
            prompt_ids = encode_prompt(reader.tokenizer, request.prompt)
            num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, ids, strict=False)))
            prefix_ids = ids[num_shared:]
        return cls(request, len(ids), limit, reader, prefix_ids)

    def __init__(
        self, request: Request, num_prompt_tokens: int, limit: int, reader: Reader, prefix_ids: Sequence[int] = ()
    ) -> None:
        """`limit` is the most tokens that the settings and the context allow; `prefix_ids` are those of `reply_prefix`."""
        self.request = request
        self.limit = limit
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.is_done = False
        self._num_prompt_tokens = num_prompt_tokens
        self._reader = reader
        self._prefix_ids = list(prefix_ids)
        self._prefix_length = len(reader.read(prefix_ids)) if prefix_ids else 0

    def add(self, token: int, logprob: float | None = None) -> None:
        """Append a token and see whether the reply ends with it."""
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        stop = self.request.sampling.stop
        if len(self.ids) >= self.limit or (token in self._reader.stop_ids and not self.request.sampling.ignore_eos):
            self.is_done = True
        elif stop and self._reader.may_complete(token, stop):
            self.is_done = cut_at_stop(self._text(self.ids, False), stop)[1]

    def generation(self) -> Generation:
        """The finished reply. `num_tokens` counts all tokens made, also the end token and those of a stop string."""
        assert self.is_done, f"request {self.request.id!r} is not done"
        has_ended = self.ids[-1] in self._reader.stop_ids and not self.request.sampling.ignore_eos
        ids = self.ids[:-1] if has_ended else self.ids
        text, is_cut = cut_at_stop(self._text(ids, has_ended), self.request.sampling.stop)
        reason: FinishReason = "stop" if has_ended or is_cut else "length"
        logprobs = tuple(self.logprobs) if self.request.sampling.logprobs else None
        return Generation(self.request.id, text, self._num_prompt_tokens, len(self.ids), reason, token_logprobs=logprobs)

    def _text(self, ids: Sequence[int], has_ended: bool) -> str:
        # Behind a prefix the reply has begun: the white space before its text is not the template's.
        is_whole = not isinstance(self.request.prompt, str) and not self._prefix_ids
        return self._reader.answer(ids, has_ended) if is_whole else self._read(ids)

    def _read(self, ids: Sequence[int]) -> str:
        """The text of new tokens. Read behind the prefix's: what begins a text loses its space with some tokenizers."""
        return self._reader.read([*self._prefix_ids, *ids])[self._prefix_length :]
