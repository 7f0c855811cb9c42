"""What a chat template writes around contents: seen once for each tokenizer, with slots in the contents' places."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from selfreward.chat.encoding import Tokenizer, encode_template, special_ids
from selfreward.errors import ModelError
from selfreward.types import Message, Role

_SLOT = "selfrewardslot{}end"
"""Stands for a message's content while the template is rendered. Letters only, so that no template treats it specially."""
_SLOT_PATTERN = re.compile(r"(\u2003?)selfrewardslot(\d+)end(\u2003?)")
_SPACE = "\u2003"
"""An em space around a slot: gone after rendering where the template strips contents, which are then stripped as well."""
_DATE = "26 Jul 2024"
"""Given to templates that ask for `date_string` (Llama 3); without it they print today's date, and no run repeats."""
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%m', '07') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') }}{%- endmacro -%}"
)
"""Put before templates that read the clock themselves: the same day in whatever format they want."""


def render_turns(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("the tokenizer has no chat template; set model.chat_template to a Jinja file")
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    roles = [message.role for message in messages]
    settings: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "date_string": _DATE, "enable_thinking": False}
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            settings["chat_template"] = _FIXED_CLOCK + template
        text = tokenizer.apply_chat_template(conversation, tokenize=False, **settings)
    except Exception as error:  # a template is foreign code: any error class may come out of it
        raise ModelError(
            f"the chat template refuses a conversation of {roles}: {error}; use other roles or set model.chat_template"
        ) from error
    assert isinstance(text, str)
    return text


@dataclass(frozen=True)
class Skeleton:
    """What a template writes around the contents of a conversation: one piece more than there are messages."""

    pieces: tuple[str, ...]
    piece_ids: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    """Which message each slot holds: the later Mistral shows the system text in the last user turn."""
    kept_spaces: tuple[tuple[bool, bool], ...]
    """Per slot: whether white space before and after its content survives the template."""
    control: frozenset[int]
    """Tokens that data must not bring."""

    @property
    def written(self) -> list[int]:
        """The control tokens that the template itself writes, in order."""
        return [token for ids in self.piece_ids for token in ids if token in self.control]

    def show(self, messages: Sequence[Message]) -> list[str]:
        """The contents as the template shows them, in the order of the slots: stripped where it strips."""
        return [_strip(messages[index].content, kept) for index, kept in zip(self.order, self.kept_spaces, strict=True)]

    def join(self, contents: Sequence[str]) -> str:
        """The whole text."""
        return self.pieces[0] + "".join(content + piece for content, piece in zip(contents, self.pieces[1:], strict=True))


@dataclass(frozen=True)
class AnswerFrame:
    """What a template writes between its generation prompt and the end of an assistant's turn, around the answer."""

    asked: str
    """What stands behind the user's content where an answer is asked for."""
    shown: str
    """What stands there where an answer follows."""
    tail: str
    """What follows the answer; '' where the template writes no end token."""
    tail_ids: tuple[int, ...]
    end_ids: list[int]
    """What ends the turn where the answer is encoded apart: the tail up to its first control token, or EOS."""
    kept_spaces: tuple[bool, bool]
    control: frozenset[int]

    @property
    def lead(self) -> str | None:
        """White space that the model has to write before its answer ('[/INST]' is followed by ' answer'); None where the
        template begins an answer in another way than it asks for one."""
        lead = self.shown.removeprefix(self.asked)
        return None if lead.strip() or not self.shown.startswith(self.asked) else lead

    @property
    def margins(self) -> tuple[str, str]:
        """The lead, and the white space before the end token."""
        return self.lead or "", self.tail[: len(self.tail) - len(self.tail.lstrip())]

    def show(self, answer: str) -> str:
        """The answer as the template shows it."""
        return _strip(answer, self.kept_spaces)


_SKELETONS: WeakKeyDictionary[Any, dict[Any, Skeleton | str]] = WeakKeyDictionary()
"""Made once for each tokenizer and sequence of roles, a refusal included: a template takes longer to render than a prompt to
encode."""


def skeleton_of(tokenizer: Tokenizer, roles: tuple[Role, ...], add_generation_prompt: bool) -> Skeleton:
    """The skeleton of a conversation with these roles.

    No roles give an empty skeleton, for tokenizers without a template. The template sees slots in place of contents: what
    it does with a content beyond placing and stripping it (cutting at a marker, for instance) does not happen.
    """
    known = _SKELETONS.setdefault(tokenizer, {})
    key = (roles, add_generation_prompt, str(tokenizer.chat_template), tokenizer.eos_token_id)
    if key not in known:
        try:
            known[key] = _make_skeleton(tokenizer, roles, add_generation_prompt)
        except ModelError as error:
            known[key] = str(error)
            raise
    made = known[key]
    if isinstance(made, str):
        raise ModelError(made)
    return made


def _make_skeleton(tokenizer: Tokenizer, roles: tuple[Role, ...], add_generation_prompt: bool) -> Skeleton:
    slots = [Message(role, f"{_SPACE}{_SLOT.format(index)}{_SPACE}") for index, role in enumerate(roles)]
    text = render_turns(tokenizer, slots, add_generation_prompt) if roles else ""
    found = list(_SLOT_PATTERN.finditer(text))
    order = [int(match[2]) for match in found]
    if sorted(order) != list(range(len(roles))):
        raise ModelError(
            f"the chat template shows messages {order} of a conversation of {list(roles)}; "
            "each must appear once: set model.chat_template"
        )
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(text)]
    pieces = tuple(text[end:start] for end, start in zip(ends, starts, strict=True))
    piece_ids = tuple(tuple(encode_template(tokenizer, piece)) for piece in pieces)
    return Skeleton(
        pieces=pieces,
        piece_ids=piece_ids,
        order=tuple(order),
        kept_spaces=tuple((bool(match[1]), bool(match[3])) for match in found),
        control=_control_ids(tokenizer, piece_ids),
    )


def answer_frame(tokenizer: Tokenizer) -> AnswerFrame:
    """How the template frames an answer, seen on one question and one answer: some leave out a system turn from
    conversations that end with an answer, but no known one frames a later answer in another way.

    Raises ModelError where nothing would end the answer.
    """
    asking = skeleton_of(tokenizer, ("user",), True)
    showing = skeleton_of(tokenizer, ("user", "assistant"), False)
    ids = showing.piece_ids[-1]
    control = asking.control | showing.control
    end = next((index for index, token in enumerate(ids) if token in control), None)
    eos = tokenizer.eos_token_id
    if end is None and not isinstance(eos, int):
        raise ModelError("the chat template ends no assistant turn and the tokenizer has no EOS token: set model.chat_template")
    return AnswerFrame(
        asked="".join(asking.pieces),
        shown="".join(showing.pieces[:-1]),
        tail="" if end is None else showing.pieces[-1],
        tail_ids=() if end is None else ids,
        end_ids=[eos] if end is None else list(ids[: end + 1]),
        kept_spaces=showing.kept_spaces[-1],
        control=control,
    )


def _control_ids(tokenizer: Tokenizer, encoded_pieces: Sequence[Sequence[int]]) -> frozenset[int]:
    """Tokens that data must not bring: special ones, and added ones that the template writes (not mere white space)."""
    added = tokenizer.added_tokens_decoder
    written = {
        token for ids in encoded_pieces for token in ids if token in added and str(getattr(added[token], "content", "")).strip()
    }
    return special_ids(tokenizer) | (written - {tokenizer.unk_token_id})


def _strip(content: str, kept_spaces: tuple[bool, bool]) -> str:
    before, after = kept_spaces
    content = content if before else content.lstrip()
    return content if after else content.rstrip()
