"""Conversations to token ids: the only place where a chat template is applied.

The contents of messages are data. An ordinary conversation gets exactly the ids that the model's own template and tokenizer
give. Where a content would bring a control token with it (`<|im_end|>` written inside a response), it is encoded
apart from the template, as plain characters, so that data can never end a turn or open another one.

Two things are settled for every template. Where it shows no system turn (Gemma, the first Mistral), the system text becomes
the head of the first user turn: it is an instruction of the user in such a family, and its makers recommend that place.
Where it can open a thinking block (Qwen3), it is told not to: a reply is the answer and nothing else.
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
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%m', '07') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') }}{%- endmacro -%}"
)
"""Put before templates that read the clock themselves: the same day in whatever format they want."""


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

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Encode a text; the result's `input_ids` is a list of ids."""
        ...


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The conversation as the template writes it, contents inserted as they are; for people to read, not to encode.

    Raises ModelError when there is no template or the template refuses the conversation (two user turns in a row).
    """
    return _render(tokenizer, _shown_turns(tokenizer, messages), add_generation_prompt)


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message] | str) -> list[int]:
    """Token ids that a model continues: a conversation with the generation prompt added, or plain text.

    Conversations get what the template writes and nothing more (a BOS only where the template writes one). Plain text
    gets a BOS where the tokenizer adds one by itself. Raises ModelError as `render` does.
    """
    if isinstance(prompt, str):
        roles: tuple[Role, ...] = ("user",) if getattr(tokenizer, "chat_template", None) else ()
        return _bos(tokenizer) + _encode_data(tokenizer, prompt, _skeleton(tokenizer, roles, True).control)
    skeleton, contents = _fill(tokenizer, prompt)
    whole = _encode_template(tokenizer, skeleton.join(contents))
    if [token for token in whole if token in skeleton.control] == skeleton.written:
        return whole
    ids = list(skeleton.piece_ids[0])
    for content, piece_ids in zip(contents, skeleton.piece_ids[1:], strict=True):
        ids += _encode_data(tokenizer, content, skeleton.control)
        ids += piece_ids
    return ids


def encode_example(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids) of a training example.

    The prompt ids equal `encode_prompt(prompt)`, so training and generation see the same. The answer ids are what the
    template writes from there to the end of an assistant turn, the answer as data; the last one is in `stop_token_ids`. Where
    the template strips assistant turns, the answer is stripped too. Raises ModelError as `render` does, and when
    the template begins answers in another way than its generation prompt does.
    """
    frame = _answer_frame(tokenizer)
    if frame.lead is None:
        raise ModelError(
            f"the chat template asks for an answer with {frame.asked!r} but shows one behind {frame.shown!r}: training and "
            "generation would differ; set model.chat_template to a Jinja file that writes both alike"
        )
    prompt_ids = encode_prompt(tokenizer, prompt)
    skeleton, contents = _fill(tokenizer, prompt)
    control = skeleton.control | frame.control
    text = frame.lead + frame.show(answer)
    # In one piece with the prompt, as the template has it: some tokenizers write a word in another way where a text starts.
    whole = _encode_template(tokenizer, skeleton.join(contents) + text + frame.tail)
    answer_ids = whole[len(prompt_ids) :]
    brought = [token for token in answer_ids if token in control]
    if whole[: len(prompt_ids)] != prompt_ids or brought != [token for token in frame.tail_ids if token in control]:
        return prompt_ids, _encode_data(tokenizer, text, control) + frame.end_ids
    if brought:
        return prompt_ids, answer_ids[: answer_ids.index(brought[0]) + 1]
    return prompt_ids, answer_ids + frame.end_ids


def stop_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a reply: the tokenizer's EOS, and the template's end of an assistant turn.

    Raises ModelError when there is neither.
    """
    eos = tokenizer.eos_token_id
    stops = set() if eos is None else set(eos) if isinstance(eos, list | tuple) else {eos}
    if getattr(tokenizer, "chat_template", None):
        stops.add(_answer_frame(tokenizer).end_ids[-1])
    if not stops:
        raise ModelError("the tokenizer has neither an EOS token nor a chat template: its replies would never end")
    return frozenset(stops)


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens with a meaning of their own. The unknown-word token stands for data and is not one, unless it is EOS too."""
    special = set(tokenizer.all_special_ids)
    special.update(token for token, added in tokenizer.added_tokens_decoder.items() if getattr(added, "special", False))
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def reply_margins(tokenizer: Tokenizer) -> tuple[str, str]:
    """White space that the template puts before and behind an answer inside its turn, as a decoded reply shows it.

    A reply is a text without them: the template writes them anew when the text is trained on. ('', '') without a template.
    """
    frame = _answer_frame(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    if frame is None or frame.lead is None or not any(frame.margins):
        return "", ""
    # Asked of the tokenizer, because some drop a space at the start of what they decode.
    ids = encode_example(tokenizer, (Message("user", "a"),), "a")[1]
    before, found, behind = str(tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)).partition("a")
    return (before, behind) if found else ("", "")


def shows_system(tokenizer: Tokenizer) -> bool:
    """Whether the template shows a system turn; where not, its text becomes the head of the first user turn."""
    try:
        _skeleton(tokenizer, ("system", "user"), True)
    except ModelError:
        return False
    return True


def describe_chat(tokenizer: Tokenizer) -> dict[str, str]:
    """What records say about a tokenizer's template: the token that ends an answer, and where a system turn goes."""
    return {
        "turn_end": str(tokenizer.decode([_answer_frame(tokenizer).end_ids[-1]])),
        "system": "shown by the template" if shows_system(tokenizer) else "merged into the first user turn",
    }


def _shown_turns(tokenizer: Tokenizer, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages; those of a template without system turns with the system text at the head of the first user turn."""
    if [message.role for message in messages[:2]] != ["system", "user"] or shows_system(tokenizer):
        return messages
    system, user, *others = messages
    return [Message("user", f"{system.content}\n\n{user.content}"), *others]


def _fill(tokenizer: Tokenizer, prompt: Sequence[Message]) -> "tuple[_Skeleton, list[str]]":
    """The skeleton of a prompt with the generation prompt, and the contents that it shows, in the order of its slots."""
    turns = _shown_turns(tokenizer, prompt)
    skeleton = _skeleton(tokenizer, tuple(message.role for message in turns), True)
    return skeleton, skeleton.show(turns)


def _render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
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
class _Skeleton:
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
class _AnswerFrame:
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


_SKELETONS: WeakKeyDictionary[Any, dict[Any, _Skeleton | str]] = WeakKeyDictionary()
"""Made once for each tokenizer and sequence of roles, a refusal included: a template takes longer to render than a prompt to
encode."""


def _skeleton(tokenizer: Tokenizer, roles: tuple[Role, ...], add_generation_prompt: bool) -> _Skeleton:
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


def _make_skeleton(tokenizer: Tokenizer, roles: tuple[Role, ...], add_generation_prompt: bool) -> _Skeleton:
    slots = [Message(role, f"{_SPACE}{_SLOT.format(index)}{_SPACE}") for index, role in enumerate(roles)]
    text = _render(tokenizer, slots, add_generation_prompt) if roles else ""
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
    piece_ids = tuple(tuple(_encode_template(tokenizer, piece)) for piece in pieces)
    return _Skeleton(
        pieces=pieces,
        piece_ids=piece_ids,
        order=tuple(order),
        kept_spaces=tuple((bool(match[1]), bool(match[3])) for match in found),
        control=_control_ids(tokenizer, piece_ids),
    )


def _answer_frame(tokenizer: Tokenizer) -> _AnswerFrame:
    """How the template frames an answer, seen on one question and one answer: some leave out a system turn from
    conversations that end with an answer, but no known one frames a later answer in another way.

    Raises ModelError where nothing would end the answer.
    """
    asking = _skeleton(tokenizer, ("user",), True)
    showing = _skeleton(tokenizer, ("user", "assistant"), False)
    ids = showing.piece_ids[-1]
    control = asking.control | showing.control
    end = next((index for index, token in enumerate(ids) if token in control), None)
    eos = tokenizer.eos_token_id
    if end is None and not isinstance(eos, int):
        raise ModelError("the chat template ends no assistant turn and the tokenizer has no EOS token: set model.chat_template")
    return _AnswerFrame(
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
