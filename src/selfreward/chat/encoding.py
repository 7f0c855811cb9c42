"""Text to token ids, as a template's text or as data."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from selfreward.errors import ModelError

_NEAR = 64
"""Characters at the end of a text whose tokens may depend on what follows; far more than any tokenizer looks ahead."""
_WORTH = 256
"""Characters before a seam that are worth one."""
_SEAM = re.compile(r"(?<=\w) (?=\w)")
"""One space between two words: no tokenizer in use writes a token across the end of a word."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token_id: Any
    bos_token_id: Any
    unk_token_id: Any
    all_special_ids: list[int]
    added_tokens_decoder: Mapping[int, Any]

    def get_chat_template(self) -> str:
        """The template that `apply_chat_template` takes, where there are several."""
        ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """The text of token ids."""
        ...

    def __call__(self, text: str | list[str], **kwargs: Any) -> Any:
        """Encode a text, or several; the result's `input_ids` is a list of ids, or one for each text."""
        ...


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens with a meaning of their own. The unknown-word token stands for data and is not one, unless it is EOS too."""
    special = set(tokenizer.all_special_ids)
    special.update(token for token, added in tokenizer.added_tokens_decoder.items() if getattr(added, "special", False))
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def encode_template(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode text in which control tokens count."""
    return _ids(tokenizer(text, add_special_tokens=False, split_special_tokens=False))


def encode_data(tokenizer: Tokenizer, text: str, control: frozenset[int]) -> list[int]:
    """Encode text in which control tokens are plain characters. Raises ModelError when the tokenizer cannot do that."""
    ids = _ids(tokenizer(text, add_special_tokens=False, split_special_tokens=True))
    if control.isdisjoint(ids):
        return ids
    # The tokenizer matches some control tokens all the same: those it does not flag as special. Cut through their text.
    names = [str(tokenizer.added_tokens_decoder[token].content) for token in control if token in tokenizer.added_tokens_decoder]
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    cuts = re.compile("|".join(rf"(?<={re.escape(n[0])})(?={re.escape(n[1:])})" for n in longest_first if n[1:]), re.IGNORECASE)
    ids = []
    start = 0
    for end in [*(match.start() for match in cuts.finditer(text)), len(text)]:
        ids += _ids(tokenizer(text[start:end], add_special_tokens=False, split_special_tokens=True))
        start = end
    if not control.isdisjoint(ids):
        bad = sorted(control.intersection(ids))
        raise ModelError(f"the tokenizer encodes plain text {text[:80]!r} with control tokens {bad}; use another tokenizer")
    return ids


def encode_endings(encode: Callable[[Sequence[str]], list[list[int]]], start: str, endings: Sequence[str]) -> list[list[int]]:
    """`encode` of the start with each ending; a long start is encoded once.

    It is cut at a seam well before its end, and each ending is encoded behind what follows the seam alone. The whole text
    with the first ending is encoded too: where its ids do not end with those of its part behind the seam, neither with the
    space there nor without it (tokenizers may put one before every text), all of them are encoded whole.
    """
    if not endings:
        return []
    (first,) = encode([start + endings[0]])
    seams = [match.start() for match in _SEAM.finditer(start, max(len(start) - 2 * _WORTH, 0), max(len(start) - _NEAR, 0))]
    if len(endings) > 1 and seams and seams[-1] >= _WORTH:
        for near in (start[seams[-1] :], start[seams[-1] + 1 :]):
            behind, *others = encode([near + ending for ending in endings])
            if first[-len(behind) :] == behind:
                return [first, *(first[: -len(behind)] + ids for ids in others)]
    return [first, *(encode([start + ending for ending in endings[1:]]) if len(endings) > 1 else ())]


def encode_templates(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """`encode_template` of each text; faster than one by one."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return [list(ids) for ids in encoded]


def encode_all_data(tokenizer: Tokenizer, texts: Sequence[str], control: frozenset[int]) -> list[list[int]]:
    """`encode_data` of each text; faster than one by one."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [
        list(ids) if control.isdisjoint(ids) else encode_data(tokenizer, text, control)
        for text, ids in zip(texts, encoded, strict=True)
    ]


def bos(tokenizer: Tokenizer) -> list[int]:
    """[BOS] where the tokenizer puts one before a text by itself, else nothing."""
    ids = _ids(tokenizer("", add_special_tokens=True))
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _ids(encoding: Any) -> list[int]:
    return list(encoding["input_ids"])
