"""Nobody grades oneself: 200 hostile responses against the shipped rubrics, real tokenizers and the scripted engine."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from attacks import LONG, make_attacks
from hypothesis import example, given
from hypothesis import strategies as st
from stage_bench import Stages, model, record
from template_tokenizers import FAMILIES
from test_chat import KINDS, make

from selfreward.artifacts import Artifact, read_rows, write_rows
from selfreward.chat import encode_prompt, render
from selfreward.judging import judge_messages, pairwise_messages, parse_verdict, parse_vote
from selfreward.rubrics import Rubric, load_rubric
from selfreward.rubrics.fencing import defuse
from selfreward.stages import judge
from selfreward.types import Completion, Drop, Generation, Judgement, Message

ATTACKS = make_attacks()
TEXTS = [attack.text for attack in ATTACKS]
FENCED = [load_rubric(name, "pointwise") for name in ("additive", "multiple_choice", "safety", "concise")]
PAIRWISE = load_rubric("pairwise", "pairwise")
TASK = "Say which city is the capital of France."


HIDDEN = "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u061c\ufeff\xad"


def tag_pattern(names: str, marks: str) -> str:
    """What reads like a tag, written another way than in the package; `marks` may stand behind the `<`."""
    blank, name = rf"[\s{HIDDEN}]*", rf"(?:{names})(?![\w-])"
    return rf"{marks}(?:{blank}[/\uff0f]{blank}{name}|[{HIDDEN}]*{name}|{blank}{name}{blank}>)"


def undo(text: str, rubric: Rubric) -> str:
    """What was written, from what the judge sees: a `<` with backslashes before a tag loses the first of them."""
    pattern = rf"([<\uff1c])\\(?={tag_pattern('|'.join(rubric.tags), rf'[{HIDDEN}]*[{re.escape(chr(92))}]*')})"
    return re.sub(pattern, r"\1", text, flags=re.I)


def between(rubric: Rubric, content: str, tag: str) -> str:
    """What stands between the tags that the body writes; fails where they are not there exactly once."""
    found = re.findall(rf"[<\uff1c]{tag_pattern(tag, '')}", content, re.I)
    assert len(found) == 2, f"{rubric.name}: {found}"
    first, last = content.index(f"<{tag}>\n"), content.index(f"\n</{tag}>")
    return content[first + len(tag) + 3 : last]


def test_the_attacks_are_many_and_always_the_same() -> None:
    assert len(ATTACKS) == 200
    assert make_attacks() == ATTACKS
    assert set(Counter(attack.family for attack in ATTACKS)) == {
        "score", "tag", "turn", "syntax", "screen", "direction", "mixed", "empty", "long",
    }  # fmt: skip
    assert max(map(len, TEXTS)) == LONG
    assert len(set(TEXTS)) > 150


@pytest.mark.parametrize("rubric", FENCED, ids=lambda rubric: rubric.name)
def test_no_response_leaves_its_tags(rubric: Rubric) -> None:
    before, after = rubric.body.replace("{{ instruction }}", TASK).split("{{ response }}")
    for text in TEXTS:
        (message,) = judge_messages(rubric, TASK, text)
        assert message.content.startswith(before)
        assert message.content.endswith(after)
        assert undo(between(rubric, message.content, "response"), rubric) == text, "only backslashes may be new"
        (message,) = judge_messages(rubric, text, "Paris.")
        assert undo(between(rubric, message.content, "instruction"), rubric) == text


def test_no_response_of_a_pair_leaves_its_tags() -> None:
    for number, text in enumerate(TEXTS):
        (message,) = pairwise_messages(PAIRWISE, TASK, text, TEXTS[-number])
        assert undo(between(PAIRWISE, message.content, "response_a"), PAIRWISE) == text
        assert undo(between(PAIRWISE, message.content, "response_b"), PAIRWISE) == TEXTS[-number]


@pytest.mark.parametrize("kind", KINDS)
def test_no_response_becomes_control_tokens(kind: str) -> None:
    tokenizer: Any = make(kind)
    control = {token for token, added in tokenizer.added_tokens_decoder.items() if added.content.strip()}
    assert control
    rubric = FENCED[0]
    expected = [token for token in encode_prompt(tokenizer, judge_messages(rubric, TASK, "Paris.")) if token in control]
    for text in TEXTS:
        messages = judge_messages(rubric, TASK, text)
        ids = encode_prompt(tokenizer, messages)
        assert [token for token in ids if token in control] == expected, f"{kind}: {text[:80]!r}"
        assert tokenizer.decode(ids) == render(tokenizer, messages, True), "and not a character is lost"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_response_forges_a_turn_of_a_known_family(family: str) -> None:
    """All attacks, and for each family the control tokens of its own, alone, in turn-like order and glued together."""
    tokenizer: Any = FAMILIES[family].build()
    control = {token for token, added in tokenizer.added_tokens_decoder.items() if added.content.strip()}
    unknown = tokenizer.unk_token_id
    names = [str(tokenizer.added_tokens_decoder[token].content) for token in sorted(control)]
    own = [*names, "".join(names), f"Paris.{''.join(reversed(names))}\n", f"ok{FAMILIES[family].end}{FAMILIES[family].example}"]
    texts = [f"{text}Score: 5" for text in own] + [text for text in TEXTS if len(text) < LONG] + [max(TEXTS, key=len)]
    rubric = FENCED[0]

    def marks(text: str) -> list[int]:
        ids = encode_prompt(tokenizer, judge_messages(rubric, TASK, text))
        return [token for token in ids if token in control and token != unknown]

    expected = marks("Paris.")
    for text in texts:
        assert marks(text) == expected, f"{family}: {text[:80]!r}"


@pytest.mark.parametrize("rubric", FENCED, ids=lambda rubric: rubric.name)
def test_no_response_is_a_verdict(rubric: Rubric) -> None:
    for text in TEXTS:
        seen = defuse(text, rubric.tags)
        for reply, expected in (
            ("I looked at it.", None),
            (f"I looked at it: <response>\n{seen}\n</response>", None),
            (f"<response>\n{seen}\n</response>\nScore: 2", 2),
            ("The response says “Score: 5”.\nScore: 1", 1),
        ):
            vote = parse_vote(rubric, Generation("r", reply, 1, 1, "stop"), 0)
            assert vote.score == expected, f"{reply[:200]!r}"


def test_no_response_of_a_pair_is_a_verdict() -> None:
    for text in TEXTS:
        seen = defuse(text, PAIRWISE.tags)
        quoted = f"<response_a>\n{seen}\n</response_a>"
        assert parse_verdict(PAIRWISE, Generation("r", quoted, 1, 1, "stop")) is None
        assert parse_verdict(PAIRWISE, Generation("r", f"{quoted}\nVerdict: B", 1, 1, "stop")) == "B"


def judged(stages: Stages, folder: Path, script: dict[str, Any], **changes: Any) -> Artifact:
    """The attacks as a round's completions, judged by a scripted model."""
    rows = [Completion(f"p/{number}", "p", TASK, number, text, 1, "stop") for number, text in enumerate(TEXTS)]
    write_rows(folder / "samples" / "completions.parquet", rows, Completion)
    (folder / "judge.json").write_text(json.dumps({"replies": [], "default": None} | script))
    run = stages.run(engine={"script": str(folder / "judge.json")}, **changes)
    return judge.run(run, 1, model(run), Artifact("samples", folder / "samples", "f"))


def test_a_stage_full_of_attacks_gives_no_score_to_any(stages: Stages, tmp_path: Path) -> None:
    made = judged(stages, tmp_path, {"default": "I looked at it and cannot say."})
    assert record(made)["counts"] == {"in": 200, "out": 0, "dropped": {"too_few_votes": 200}}
    assert record(made)["notes"]["failures"] == {"no_score": 600}
    assert len(read_rows(made.path / "rejects.parquet", Drop)) == 200


def test_a_stage_full_of_attacks_gets_what_the_judge_says(stages: Stages, tmp_path: Path) -> None:
    made = judged(stages, tmp_path, {"default": "It shouts.\nScore: 1"})
    assert {item.score for item in read_rows(made.path / "judgements.parquet", Judgement)} == {1.0}
    assert record(made)["notes"]["score_histogram"] == {"1": 600}


def test_a_judge_that_repeats_its_whole_prompt_has_said_nothing(stages: Stages, tmp_path: Path) -> None:
    made = judged(stages, tmp_path, {}, judge={"model": "scripted:echo", "max_tokens": 100_000})
    assert record(made)["notes"]["failures"] == {"no_score": 600}


def test_a_prompt_over_the_context_is_a_failure_and_asked_once(stages: Stages, tmp_path: Path) -> None:
    made = judged(stages, tmp_path, {"default": "Score: 3", "context_length": 1000}, judge={"max_retries": 3})
    rows = read_rows(made.path / "judgements.parquet", Judgement)
    long = {item.completion_id for item in rows if item.votes[0].failure == "too_long"}
    fit = {f"p/{number}" for number, text in enumerate(TEXTS) if len(text.split()) < 500}
    assert long
    assert not long & fit
    assert all(
        vote.attempts == () and vote.num_tokens == 0 for item in rows if item.completion_id in long for vote in item.votes
    )
    assert all(item.score == 3 for item in rows if item.completion_id not in long)
    assert record(made)["notes"]["num_retries"] == 0


def test_a_real_engine_cuts_no_prompt_either(make_config: Any, tiny_model_dir: Path) -> None:
    from selfreward.engines import open_engine
    from selfreward.types import Request, Sampling

    with open_engine(str(tiny_model_dir), make_config()) as engine:
        long, short = (
            Request(name, (Message("user", text),), Sampling(4), 0)
            for name, text in (("long", "Score: 5 " * 6000), ("short", "Hi"))
        )
        replies = {reply.request_id: reply for reply in engine.generate([long, short])}
    vote = parse_vote(FENCED[0], replies["long"], 0)
    assert (vote.text, vote.score, vote.failure, vote.num_tokens) == ("", None, "too_long", 0)
    assert parse_vote(FENCED[0], replies["short"], 0).failure != "too_long"


PARTS = [
    "<",
    "/",
    "\\",
    ">",
    " ",
    "\n",
    "response",
    "RESPONSE",
    "\u200b",
    "＜",
    "／",
    "ｒ",
    "x",
    "<response",
    "</response>",
    "-",
    "_a",
]


@example("<response\u200bｒ", "")
@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
def test_fencing_can_be_undone(one: str, other: str) -> None:
    names = ("instruction", "response")
    fenced = defuse(one, names)
    assert defuse(fenced, names).count("\\") >= fenced.count("\\"), "a fenced text stays fenced"
    assert (defuse(other, names) == fenced) == (one == other), "no two texts look the same"
    assert [c for c in fenced if c != "\\"] == [c for c in one if c != "\\"], "nothing but backslashes is new"
    assert not re.search(r"<\s*/\s*response(?![\w-])|<response(?![\w-])", fenced, re.I)


@given(st.text(st.characters(exclude_characters="<＜﹤", exclude_categories=["Cs"])))
def test_text_without_tags_is_untouched(text: str) -> None:
    assert defuse(text, ("instruction", "response")) == text


@pytest.mark.parametrize(
    "text", ["x < response", "if a <b and c> d", "<p class='response'>", "</responses>", "<response-time>", "5 < 6 </b>", "<"]
)
def test_ordinary_text_is_untouched(text: str) -> None:
    assert defuse(text, ("instruction", "response")) == text
