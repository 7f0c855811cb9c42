"""Conversations to token ids: the only place where a chat template is applied.

The contents of messages are data. An ordinary conversation gets exactly the ids that the model's own template and tokenizer
give. Where a content would bring a control token with it (`<|im_end|>` written inside a response), it is encoded
apart from the template, as plain characters, so that data can never end a turn or open another one.

Two things are settled for every template. Where it shows no system turn (Gemma, the first Mistral), the system text becomes
the head of the first user turn: it is an instruction of the user in such a family, and its makers recommend that place.
Where it can open a thinking block (Qwen3), it is told not to: a reply is the answer and nothing else.
"""

from collections.abc import Sequence

from selfreward.chat.encoding import (
    Tokenizer,
    bos,
    encode_all_data,
    encode_data,
    encode_endings,
    encode_template,
    encode_templates,
    special_ids,
)
from selfreward.chat.skeleton import Skeleton, answer_frame, render_turns, skeleton_of
from selfreward.errors import ModelError
from selfreward.types import Message, Role

__all__ = [
    "Tokenizer",
    "describe_chat",
    "encode_continuations",
    "encode_example",
    "encode_prompt",
    "render",
    "reply_margins",
    "shows_system",
    "special_ids",
    "stop_token_ids",
]


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The conversation as the template writes it, contents inserted as they are; for people to read, not to encode.

    Raises ModelError when there is no template or the template refuses the conversation (two user turns in a row).
    """
    return render_turns(tokenizer, _shown_turns(tokenizer, messages), add_generation_prompt)


def encode_prompt(tokenizer: Tokenizer, prompt: Sequence[Message] | str) -> list[int]:
    """Token ids that a model continues: a conversation with the generation prompt added, or plain text.

    Conversations get what the template writes and nothing more (a BOS only where the template writes one). Plain text
    gets a BOS where the tokenizer adds one by itself. Raises ModelError as `render` does.
    """
    if isinstance(prompt, str):
        return bos(tokenizer) + encode_data(tokenizer, prompt, _control_of_texts(tokenizer))
    skeleton, contents = _fill(tokenizer, prompt)
    whole = encode_template(tokenizer, skeleton.join(contents))
    if [token for token in whole if token in skeleton.control] == skeleton.written:
        return whole
    ids = list(skeleton.piece_ids[0])
    for content, piece_ids in zip(contents, skeleton.piece_ids[1:], strict=True):
        ids += encode_data(tokenizer, content, skeleton.control)
        ids += piece_ids
    return ids


def encode_continuations(tokenizer: Tokenizer, prompt: Sequence[Message] | str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompt followed by each of these beginnings of a reply; an empty one gives `encode_prompt`.

    After a conversation a beginning is encoded as answers are for training (`encode_example`): in one piece with the prompt
    and behind the white space that the template puts before answers. Plain text and what continues it are one text. Either
    way tokens merge inside a beginning, so one text's ids need not begin with those of a shorter one (`Score: ` and
    `Score: 4`). Raises ModelError as `render` does.
    """
    if isinstance(prompt, str):
        control = _control_of_texts(tokenizer)
        first = bos(tokenizer)
        return [
            first + ids
            for ids in encode_endings(lambda all_texts: encode_all_data(tokenizer, all_texts, control), prompt, texts)
        ]
    prompt_ids = encode_prompt(tokenizer, prompt)
    skeleton, contents = _fill(tokenizer, prompt)
    frame = answer_frame(tokenizer)
    control = skeleton.control | frame.control

    def continued(text: str, whole: list[int]) -> list[int]:
        behind = whole[len(prompt_ids) :]
        if whole[: len(prompt_ids)] == prompt_ids and control.isdisjoint(behind):
            return whole
        return prompt_ids + encode_data(tokenizer, text, control)

    begun = [(frame.lead or "") + text if text else "" for text in texts]
    wholes = encode_endings(lambda all_texts: encode_templates(tokenizer, all_texts), skeleton.join(contents), begun)
    return [continued(text, whole) if text else list(prompt_ids) for text, whole in zip(begun, wholes, strict=True)]


def encode_example(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids) of a training example.

    The prompt ids equal `encode_prompt(prompt)`, so training and generation see the same. The answer ids are what the
    template writes from there to the end of an assistant turn, the answer as data; the last one is in `stop_token_ids`. Where
    the template strips assistant turns, the answer is stripped too. Raises ModelError as `render` does, and when
    the template begins answers in another way than its generation prompt does.
    """
    frame = answer_frame(tokenizer)
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
    whole = encode_template(tokenizer, skeleton.join(contents) + text + frame.tail)
    answer_ids = whole[len(prompt_ids) :]
    brought = [token for token in answer_ids if token in control]
    if whole[: len(prompt_ids)] != prompt_ids or brought != [token for token in frame.tail_ids if token in control]:
        return prompt_ids, encode_data(tokenizer, text, control) + frame.end_ids
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
        stops.add(answer_frame(tokenizer).end_ids[-1])
    if not stops:
        raise ModelError("the tokenizer has neither an EOS token nor a chat template: its replies would never end")
    return frozenset(stops)


def reply_margins(tokenizer: Tokenizer) -> tuple[str, str]:
    """White space that the template puts before and behind an answer inside its turn, as a decoded reply shows it.

    A reply is a text without them: the template writes them anew when the text is trained on. ('', '') without a template.
    """
    frame = answer_frame(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    if frame is None or frame.lead is None or not any(frame.margins):
        return "", ""
    # Asked of the tokenizer, because some drop a space at the start of what they decode.
    ids = encode_example(tokenizer, (Message("user", "a"),), "a")[1]
    before, found, behind = str(tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)).partition("a")
    return (before, behind) if found else ("", "")


def shows_system(tokenizer: Tokenizer) -> bool:
    """Whether the template shows a system turn; where not, its text becomes the head of the first user turn."""
    try:
        skeleton_of(tokenizer, ("system", "user"), True)
    except ModelError:
        return False
    return True


def describe_chat(tokenizer: Tokenizer) -> dict[str, str]:
    """What records say about a tokenizer's template: the token that ends an answer, and where a system turn goes."""
    return {
        "turn_end": str(tokenizer.decode([answer_frame(tokenizer).end_ids[-1]])),
        "system": "shown by the template" if shows_system(tokenizer) else "merged into the first user turn",
    }


def _shown_turns(tokenizer: Tokenizer, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages; those of a template without system turns with the system text at the head of the first user turn."""
    if [message.role for message in messages[:2]] != ["system", "user"] or shows_system(tokenizer):
        return messages
    system, user, *others = messages
    return [Message("user", f"{system.content}\n\n{user.content}"), *others]


def _control_of_texts(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that plain text must not bring."""
    roles: tuple[Role, ...] = ("user",) if getattr(tokenizer, "chat_template", None) else ()
    return skeleton_of(tokenizer, roles, True).control


def _fill(tokenizer: Tokenizer, prompt: Sequence[Message]) -> tuple[Skeleton, list[str]]:
    """The skeleton of a prompt with the generation prompt, and the contents that it shows, in the order of its slots."""
    turns = _shown_turns(tokenizer, prompt)
    skeleton = skeleton_of(tokenizer, tuple(message.role for message in turns), True)
    return skeleton, skeleton.show(turns)
