"""Conversations to token ids: the only place where a chat template is applied.

The contents of messages are data. An ordinary prompt gets exactly the ids that the model's own template and tokenizer
give. Where a content would bring a control token with it (`<|im_end|>` written inside a response), it is encoded
apart from the template, as plain characters, so that data can never end a turn or open another one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from selfreward.errors import ModelError
from selfreward.types import Message, Role

_SLOT = "selfrewardslot{}end"
"""Stands for a message's content while the template is rendered. Letters only, so that no template treats it specially."""
_SLOT_PATTERN = re.compile(r"(\u2003?)selfrewardslot(\d+)end(\u2003?)")
_SPACE = "\u2003"
"""An em space around a slot: gone after rendering where the template strips contents, which are then stripped as well."""
_DATE = "26 Jul 2024"
"""Given to templates that ask for `date_string` (Llama 3); without it they print today's date, and no run repeats."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token_id: Any
    bos_token_id: Any
    unk_token_id: Any
    all_special_ids: list[int]
    added_tokens_decoder: Mapping[int, Any]

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render a conversation."""
        ...

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Encode a text; the result's `input_ids` is a list of ids."""
        ...


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The conversation as the template writes it, contents inserted as they are; for people to read, not to encode.

    Raises ModelError when there is no template or the template refuses the conversation (a system turn for Gemma).
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("the tokenizer has no chat template; set model.chat_template to a Jinja file")
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    roles = [message.role for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=_DATE
        )
    except Exception as error:  # a template is foreign code: any error class may come out of it
        raise ModelError(
            f"the chat template refuses a conversation of {roles}: {error}; use other roles or set model.chat_template"
        ) from error
    assert isinstance(text, str)
    return text


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message] | str) -> list[int]:
    """Token ids that a model continues: a conversation with the generation prompt added, or plain text.

    Conversations get what the template writes and nothing more (a BOS only where the template writes one). Plain text
    gets a BOS where the tokenizer adds one by itself. Raises ModelError as `render` does.
    """
    if isinstance(prompt, str):
        roles: tuple[Role, ...] = ("user",) if getattr(tokenizer, "chat_template", None) else ()
        return _bos(tokenizer) + _encode_data(tokenizer, prompt, _skeleton(tokenizer, roles, True).control)
    skeleton = _skeleton(tokenizer, tuple(message.role for message in prompt), True)
    contents = skeleton.show(prompt)
    whole = _encode_template(tokenizer, skeleton.join(contents))
    if [token for token in whole if token in skeleton.control] == skeleton.written:
        return whole
    ids = list(skeleton.piece_ids[0])
    for content, piece_ids in zip(contents, skeleton.piece_ids[1:], strict=True):
        ids += _encode_data(tokenizer, content, skeleton.control)
        ids += piece_ids
    return ids


def encode_continuations(tokenizer: Tokenizer, prompt: Sequence[Message] | str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompt followed by each of these beginnings of a reply; an empty one gives `encode_prompt`.

    After a conversation a beginning is encoded as answers are for training (`encode_example`); plain text and what continues
    it are one text. Either way tokens merge inside a beginning, so one text's ids need not begin with those of a shorter one
    (`Score: ` and `Score: 4`). Raises ModelError as `render` does.
    """
    if isinstance(prompt, str):
        return [encode_prompt(tokenizer, prompt + text) for text in texts]
    ids = encode_prompt(tokenizer, prompt)
    control = _skeleton(tokenizer, tuple(message.role for message in prompt), True).control
    return [ids + (_encode_data(tokenizer, text, control) if text else []) for text in texts]


def encode_example(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids) of a training example.

    The prompt ids equal `encode_prompt(prompt)`, so training and generation see the same. The answer ids are the answer
    as data plus what the template writes to end an assistant turn; the last one is in `stop_token_ids`. Where the template
    strips assistant turns, the answer is stripped too. Raises ModelError as `render` does.
    """
    conversation = [*prompt, Message("assistant", answer)]
    skeleton = _skeleton(tokenizer, tuple(message.role for message in conversation), False)
    answer_ids = _encode_data(tokenizer, skeleton.show(conversation)[-1], skeleton.control)
    return encode_prompt(tokenizer, prompt), answer_ids + _turn_end(tokenizer, skeleton)


def stop_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a reply: the tokenizer's EOS, and the template's end of an assistant turn.

    Raises ModelError when there is neither.
    """
    eos = tokenizer.eos_token_id
    stops = set() if eos is None else set(eos) if isinstance(eos, list | tuple) else {eos}
    if getattr(tokenizer, "chat_template", None):
        stops.add(_turn_end(tokenizer, _skeleton(tokenizer, ("user", "assistant"), False))[-1])
    if not stops:
        raise ModelError("the tokenizer has neither an EOS token nor a chat template: its replies would never end")
    return frozenset(stops)


@dataclass(frozen=True)
class _Skeleton:
    """What a template writes around the contents of a conversation: one piece more than there are messages."""

    pieces: tuple[str, ...]
    piece_ids: tuple[tuple[int, ...], ...]
    kept_spaces: tuple[tuple[bool, bool], ...]
    """Per message: whether white space before and after its content survives the template."""
    control: frozenset[int]
    """Tokens that data must not bring."""

    @property
    def written(self) -> list[int]:
        """The control tokens that the template itself writes, in order."""
        return [token for ids in self.piece_ids for token in ids if token in self.control]

    def show(self, messages: Sequence[Message]) -> list[str]:
        """The contents as the template shows them: stripped where it strips."""
        contents = []
        for message, (before, after) in zip(messages, self.kept_spaces, strict=True):
            content = message.content if before else message.content.lstrip()
            contents.append(content if after else content.rstrip())
        return contents

    def join(self, contents: Sequence[str]) -> str:
        """The whole text."""
        return self.pieces[0] + "".join(content + piece for content, piece in zip(contents, self.pieces[1:], strict=True))


_SKELETONS: WeakKeyDictionary[Any, dict[Any, _Skeleton]] = WeakKeyDictionary()
"""Made once for each tokenizer and sequence of roles: a template takes longer to render than a prompt to encode."""


def _skeleton(tokenizer: Tokenizer, roles: tuple[Role, ...], add_generation_prompt: bool) -> _Skeleton:
    """The skeleton of a conversation with these roles.

    No roles give an empty skeleton, for tokenizers without a template. The template sees slots in place of contents: what
    it does with a content beyond placing and stripping it (cutting at a marker, for instance) does not happen.
    """
    known = _SKELETONS.setdefault(tokenizer, {})
    key = (roles, add_generation_prompt, str(tokenizer.chat_template), tokenizer.eos_token_id)
    if key not in known:
        known[key] = _make_skeleton(tokenizer, roles, add_generation_prompt)
    return known[key]


def _make_skeleton(tokenizer: Tokenizer, roles: tuple[Role, ...], add_generation_prompt: bool) -> _Skeleton:
    slots = [Message(role, f"{_SPACE}{_SLOT.format(index)}{_SPACE}") for index, role in enumerate(roles)]
    text = render(tokenizer, slots, add_generation_prompt) if roles else ""
    found = list(_SLOT_PATTERN.finditer(text))
    order = [int(match[2]) for match in found]
    if order != list(range(len(roles))):
        raise ModelError(
            f"the chat template shows messages {order} of a conversation of {list(roles)}; "
            "each must appear once, in order: set model.chat_template"
        )
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(text)]
    pieces = tuple(text[end:start] for end, start in zip(ends, starts, strict=True))
    piece_ids = tuple(tuple(_encode_template(tokenizer, piece)) for piece in pieces)
    return _Skeleton(
        pieces=pieces,
        piece_ids=piece_ids,
        kept_spaces=tuple((bool(match[1]), bool(match[3])) for match in found),
        control=_control_ids(tokenizer, piece_ids),
    )


def _turn_end(tokenizer: Tokenizer, skeleton: _Skeleton) -> list[int]:
    """Ids from the end of an assistant's answer up to the token that ends the turn; EOS where the template writes none."""
    ids = skeleton.piece_ids[-1]
    for index, token in enumerate(ids):
        if token in skeleton.control:
            return list(ids[: index + 1])
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ModelError("the chat template ends no assistant turn and the tokenizer has no EOS token: set model.chat_template")
    return [eos]


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens with a meaning of their own. The unknown-word token stands for data and is not one, unless it is EOS too."""
    special = set(tokenizer.all_special_ids)
    special.update(token for token, added in tokenizer.added_tokens_decoder.items() if getattr(added, "special", False))
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def _control_ids(tokenizer: Tokenizer, encoded_pieces: Sequence[Sequence[int]]) -> frozenset[int]:
    """Tokens that data must not bring: special ones, and added ones that the template writes (not mere white space)."""
    added = tokenizer.added_tokens_decoder
    written = {
        token for ids in encoded_pieces for token in ids if token in added and str(getattr(added[token], "content", "")).strip()
    }
    return _special_ids(tokenizer) | (written - {tokenizer.unk_token_id})


def _encode_template(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode text in which control tokens count."""
    return _ids(tokenizer(text, add_special_tokens=False, split_special_tokens=False))


def _encode_data(tokenizer: Tokenizer, text: str, control: frozenset[int]) -> list[int]:
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


def _bos(tokenizer: Tokenizer) -> list[int]:
    """[BOS] where the tokenizer puts one before a text by itself, else nothing."""
    ids = _ids(tokenizer("", add_special_tokens=True))
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _ids(encoding: Any) -> list[int]:
    return list(encoding["input_ids"])
