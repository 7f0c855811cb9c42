"""Formats in which a row holds a prompt and at most one response to use: alpaca, completion, prompts, self-instruct,
messages, sharegpt, eft.

Conversations: the first turn is the prompt, the reply to it is the response; later replies are counted (`deeper_turn`).
A row with a system turn is dropped (`system_turn`): its reply answers more than the prompt, and a record has no place for
what the system was told. A system turn without text is as good as none.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from selfreward.sources.found import Found
from selfreward.sources.rows import Row
from selfreward.texts import shown

SPEAKERS = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "function_call": "tool", "observation": "tool",
}  # fmt: skip
"""Names of speakers in use -> ours."""
PROMPT_KEYS = ("prompt", "instruction", "text")

Turn = tuple[str, str | None]
"""Who speaks, and the text; None where the turn has none (a tool call, a picture)."""


def parse_alpaca(row: Row) -> Found:
    """`instruction`, optional `input` (or `context`), `output` (or `response`)."""
    return found(row, _with_input(row.string("instruction"), row, "input", "context"), row.string("output", "response"))


def parse_completion(row: Row) -> Found:
    """`prompt` and `completion` (or `response`), texts or lists of turns."""
    return one_turn(row, "prompt", row.find("completion", "response"))


def parse_prompt(row: Row) -> Found:
    """`prompt`, `instruction` with optional `input`, or `text`, and no reply."""
    return found(row, prompt_of(row))


def prompt_of(row: Row) -> str:
    """The prompt alone, whatever else the row has."""
    prompt = row.string(*PROMPT_KEYS)
    return _with_input(prompt, row, "input") if row.find(*PROMPT_KEYS) == "instruction" else prompt


def parse_self_instruct(row: Row) -> Found:
    """`instruction` and `instances`; the first instance counts, others are left out (`further_instance`)."""
    instances = row.rows("instances")
    if not instances:
        raise row.fail("instances", "must hold at least one instance, got none")
    for instance in instances:
        instance.string("output")
    unit = found(row, _with_input(row.string("instruction"), instances[0], "input"), instances[0].string("output"))
    return replace(unit, lost=Counter({"further_instance": len(instances) - 1}))


def parse_eft(row: Row) -> Found:
    """`instruction`, `response`, `judgement`, `score`: a ready target, so none of them may be blank."""
    unit = found(row, row.text("instruction"), row.text("response"))
    return replace(unit, judgement=row.text("judgement"), score=row.number_at("score"))


def parse_messages(row: Row) -> Found:
    """`messages`: turns with `role` and `content`."""
    return _conversation(row, turns_of(row, "messages"))


def parse_sharegpt(row: Row) -> Found:
    """`conversations`: turns with `from` and `value`."""
    return _conversation(row, turns_of(row, "conversations"))


def found(row: Row, prompt: str, response: str | None = None) -> Found:
    """A unit with the fields that all formats share."""
    return Found(row.number, row.own_id(), prompt, response, lang=row.optional("lang"))


def unusable(row: Row, reason: str, unread: int) -> Found:
    """A row that is left out as a whole."""
    return Found(row.number, row.own_id(), reason=reason, unread=unread, item=row.value)


def one_turn(row: Row, prompt: str | None, reply: str) -> Found:
    """The fields of prompt and reply, each a text or a list of turns; drops conversations that are longer than that."""
    turns = _said(row, prompt, "user") if prompt else []
    answer = _said(row, reply, "assistant")
    # The reply's list may hold the prompt as well.
    turns = answer if answer[: len(turns)] == turns else turns + answer
    unit = _conversation(row, turns)
    speakers = [speaker for speaker, _ in turns if speaker != "system"]
    return unit if unit.reason or speakers == ["user", "assistant"] else unusable(row, "multi_turn", 1)


def turns_of(row: Row, key: str) -> list[Turn]:
    """A list of turns, each with `role` or `from`, and `content` or `value`."""
    turns = row.rows(key)
    if not turns:
        raise row.fail(key, "must hold at least one turn, got none")
    return [(_speaker(turn), _content(turn)) for turn in turns]


def _conversation(row: Row, turns: list[Turn]) -> Found:
    num_replies = sum(speaker == "assistant" for speaker, _ in turns)
    if any(speaker == "system" and (text is None or text.strip()) for speaker, text in turns):
        return unusable(row, "system_turn", num_replies)
    turns = [turn for turn in turns if turn[0] != "system"]
    if not turns or turns[0][0] != "user":
        return unusable(row, "no_user_turn", num_replies)
    prompt = turns[0][1]
    if prompt is None:
        return unusable(row, "not_text", num_replies)
    lost: Counter[str] = Counter()
    response = None
    if len(turns) > 1 and turns[1][0] == "assistant":
        response = turns[1][1]
        lost["not_text"] += response is None
        lost["deeper_turn"] += num_replies - 1
    else:  # Nobody answers the first turn: the user goes on, or a tool does.
        lost["deeper_turn"] += num_replies
    return replace(found(row, prompt, response), lost=lost)


def _said(row: Row, key: str, speaker: str) -> list[Turn]:
    """A field's turns; a text is one turn of the speaker."""
    return turns_of(row, key) if isinstance(row.get(key), list) else [(speaker, row.string(key))]


def _speaker(turn: Row) -> str:
    key = turn.find("role", "from")
    name = turn.string(key).strip().lower()
    if name not in SPEAKERS:
        raise turn.fail(key, f"must be one of {', '.join(SPEAKERS)}, got {shown(name)}")
    return SPEAKERS[name]


def _content(turn: Row) -> str | None:
    """The text of a turn: a text, or a list of parts that are all texts; None where it is something else."""
    if not {"content", "value"} & turn.value.keys():
        turn.find("content", "value")
    key = next((key for key in ("content", "value") if turn.has(key)), None)
    if key is None:
        return None
    value: Any = turn.value[key]
    if not isinstance(value, list):
        return turn.string(key)
    parts = turn.rows(key)
    if any(part.value.get("type") != "text" for part in parts):
        return None
    return "".join(part.string("text") for part in parts)


def _with_input(instruction: str, row: Row, *keys: str) -> str:
    """The instruction with its input below, a blank line between."""
    extra = next((row.string(key) for key in keys if row.has(key)), "")
    return "\n\n".join(part for part in (instruction, extra) if part.strip())
