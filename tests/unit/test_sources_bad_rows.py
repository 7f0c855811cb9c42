"""Seed sources: rows that cannot be read, each an error that names file, line and field, or a drop that keeps it."""

import json
from pathlib import Path
from typing import Any

import pytest
from source_files import lines, read

from selfreward.errors import DataError

GOOD = {"prompt": "p", "completion": "c"}
EFT = {"instruction": "i", "response": "r", "judgement": "j", "score": 3}
A = {"text": "a", "rank": 0}
SAYS = {"role": "assistant", "content": "b"}
WHOLE = "must be a whole number from 0, got"


def ranked(*responses: Any) -> list[Any]:
    return [{"prompt": "p", "responses": [A, {"text": "b", "rank": 1}]}, {"prompt": "p", "responses": list(responses)}]


def eft(score: bytes) -> bytes:
    return lines([EFT]) + lines([EFT]).replace(b": 3}", b": " + score + b"}")


def rated(annotations: Any) -> list[Any]:
    return [{"instruction": "i", "completions": [{"response": "r", "annotations": annotations}]}]


def turns(*given: Any) -> list[Any]:
    return [{"messages": [{"role": "user", "content": "a"}]}, {"messages": list(given)}]


def tree(*replies: Any) -> list[Any]:
    return [{"prompt": {"text": "p", "replies": list(replies)}}]


BAD_ROWS: dict[str, tuple[list[Any] | bytes, str]] = {
    "not json": (lines([GOOD]) + b"oops\n", "not JSON: Expecting value"),
    "truncated last line": (lines([GOOD]) + b'{"prompt": "p", "compl', "not JSON: Unterminated string"),
    "another encoding": (lines([GOOD]) + b'{"prompt": "caf\xe9"}\n', "not text in UTF-8 (byte 0xe9: "),
    "a list as a row": ([GOOD, ["p", "c"]], "must be a JSON object, got ['p', 'c']"),
    "nested too deep": (lines([GOOD]) + b'{"a":' * 100_000, "not JSON: "),
    "an endless number": (lines([GOOD]) + b'{"prompt": ' + b"1" * 5000 + b"}\n", "not JSON: Exceeds the limit"),
    "NUL bytes": (lines([GOOD]) + b'{"prompt": "p\0"}\n', "not JSON: Invalid control character"),
    "missing prompt": ([GOOD, {"response": "r"}], "field 'prompt' is missing; the row has ['response']"),
    "missing reply": ([GOOD, {"prompt": "p"}], "field 'completion' or 'response' is missing; the row has ['prompt']"),
    "null reply": ([GOOD, {"prompt": "p", "completion": None}], "field 'completion' is null"),
    "null field": ([GOOD, GOOD | {"prompt": None}], "field 'prompt' is null"),
    "number as prompt": ([GOOD, GOOD | {"prompt": 3}], "field 'prompt' must be a text, got 3"),
    "half a surrogate pair": ([GOOD, GOOD | {"prompt": "\ud83d"}], "field 'prompt' holds half of a surrogate pair"),
    "id of a wrong type": ([GOOD, GOOD | {"id": [1]}], "field 'id' must be a whole number or a text of at most 200"),
    "endless id": ([GOOD, GOOD | {"id": "x" * 201}], "field 'id' must be a whole number or a text of at most 200"),
    "empty list of turns": ([GOOD, GOOD | {"prompt": []}], "field 'prompt' must hold at least one turn, got none"),
    "messages of null": (turns(None), "field 'messages' must be a list of objects, got [None]"),
    "unknown speaker": (turns({"role": "alien", "content": "a"}), "field 'messages[0].role' must be one of user, human"),
    "turn without content": (turns({"role": "user"}), "field 'messages[0].content' or 'messages[0].value' is missing"),
    "content of a wrong type": (turns({"role": "user", "content": 3}), "field 'messages[0].content' must be a text, got 3"),
    "no instances": ([{"instruction": "i", "instances": []}], "field 'instances' must hold at least one instance, got none"),
    "instance of nulls": (
        [{"instruction": "i", "instances": [{"input": None, "output": None}]}],
        "field 'instances[0].output' is null",
    ),
    "no responses": (ranked(), "field 'responses' must hold at least one reply, got none"),
    "responses of nulls": (ranked(None, None), "field 'responses' must be a list of objects, got [None, None]"),
    "negative rank": (ranked(A, {"text": "b", "rank": -1}), f"field 'responses[1].rank' {WHOLE} -1"),
    "bool rank": (ranked(A, {"text": "b", "rank": True}), f"field 'responses[1].rank' {WHOLE} True"),
    "fraction rank": (ranked(A, {"text": "b", "rank": 1.5}), f"field 'responses[1].rank' {WHOLE} 1.5"),
    "rank as text": (ranked(A, {"text": "b", "rank": "1"}), f"field 'responses[1].rank' {WHOLE} '1'"),
    "a reply without rank": (ranked(A, {"text": "b"}), "field 'responses[1].rank' is missing; the row has ['text']"),
    "no reply has a rank": (ranked({"text": "b"}), "field 'responses[0].rank' or"),
    "reply without text": (ranked(A, {"rank": 1}), "field 'responses[1].text' or"),
    "texts without order": (ranked("a", "b"), "is missing; the row has ['prompt', 'responses']"),
    "too few scores": (
        [{"prompt": "p", "responses": ["a", "b"], "scores": [1]}],
        "field 'scores' must hold one value for each of the 2 replies, got 1",
    ),
    "NaN score": (eft(b"NaN"), "field 'score' must be a finite number, got nan"),
    "infinite score": (eft(b"1e999"), "field 'score' must be a finite number, got inf"),
    "huge score": (eft(b"1" + b"0" * 400), "field 'score' must be a finite number, got 1000"),
    "bool score": (eft(b"true"), "field 'score' must be a finite number, got True"),
    "score as text": (eft(b'"4"'), "field 'score' must be a finite number, got '4'"),
    "blank judgement": ([EFT, EFT | {"judgement": " "}], "field 'judgement' must be a text that is not blank, got ' '"),
    "ratings of a wrong type": (rated([1]), "field 'completions[0].annotations' must be an object of objects"),
    "rating of a wrong type": (
        rated({"a": {"Rating": "good"}}),
        "field 'completions[0].annotations.a.Rating' must be a finite number, got 'good'",
    ),
    "preference of two prompts": (
        [{"chosen": [{"role": "user", "content": "a"}, SAYS], "rejected": [{"role": "user", "content": "x"}, SAYS]}],
        "field 'rejected' must answer the prompt that 'chosen' answers",
    ),
    "preference of texts alone": (
        [{"chosen": "Human: a", "rejected": "Human: b"}],
        "field 'prompt' is missing; the row has ['chosen', 'rejected']",
    ),
    "tree with a broken reply": (tree({"text": None, "rank": 0}), "field 'prompt.replies[0].text' is null"),
    "tree with a bool rank": (tree({"text": "r", "rank": False}), f"field 'prompt.replies[0].rank' {WHOLE} False"),
    "tree with deep nulls": (
        tree({"text": "r", "rank": 0, "replies": [None]}),
        "field 'prompt.replies[0].replies' must be a list of objects at every depth",
    ),
}
"""Case -> rows, the last of them bad; what the error says."""


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_an_error_or_a_drop(tmp_path: Path, case: str) -> None:
    given, message = BAD_ROWS[case]
    content = given if isinstance(given, bytes) else lines(given)
    last = len(content.splitlines())
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} line {last}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300
    _, records, drops = read(path, on_bad_row="skip")
    assert len(records) == last - 1
    assert [(drop.id, drop.reason) for drop in drops] == [(f"s-{last}", "bad_row")]
    kept = json.loads(drops[0].item)
    assert kept["error"] == str(caught.value)
    assert kept["row"]
    assert len(drops[0].item) < 3000


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "no_suffix"])
def test_one_bad_byte_costs_one_row_wherever_it_stands(tmp_path: Path, name: str) -> None:
    bad, good = b'{"prompt": "caf\xe9", "completion": "c"}\n', lines([GOOD])
    for number, content in enumerate((bad + good * 2, good + bad + good, good * 2 + bad), start=1):
        (tmp_path / name).write_bytes(content)
        _, records, drops = read(tmp_path / name, on_bad_row="skip")
        assert ([drop.id for drop in drops], len(records)) == ([f"s-{number}"], 2)
        kept = json.loads(drops[0].item)
        assert kept["error"].startswith(f"{tmp_path / name} line {number}: not text in UTF-8 (byte 0xe9: ")
        assert kept["row"].startswith('{"prompt": "caf\\xe9"')
        with pytest.raises(DataError, match=rf"line {number}: not text in UTF-8 .*; convert the file to UTF-8$"):
            read(tmp_path / name)


def test_two_formats_in_a_tree_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([*tree(), GOOD]))
    with pytest.raises(DataError, match="mixes formats: line 1 looks like oasst-trees, line 2 like completion"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"line 2: field 'prompt' must be the tree's first message, an object$"):
        read(tmp_path / "a.jsonl", format="oasst-trees")


def test_blank_prompts_are_drops(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([GOOD, GOOD | {"prompt": " \n"}]))
    reading, records, drops = read(tmp_path / "a.jsonl")
    assert (len(records), [(drop.id, drop.reason) for drop in drops]) == (1, [("s-2", "blank")])
    assert reading.replies_dropped == {"row_blank": 1}
    assert json.loads(drops[0].item) == {"prompt": " \n", "response": "c"}


def test_csv_rows_of_another_width(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt,completion\na,b\nc\nd,e,f\n")
    with pytest.raises(DataError, match=r"a\.csv row 2: has 1 cells for 2 columns \['prompt', 'completion'\]$"):
        read(tmp_path / "a.csv")
    _, records, drops = read(tmp_path / "a.csv", on_bad_row="skip")
    assert ([r.id for r in records], [d.id for d in drops]) == (["s-1"], ["s-2", "s-3"])


def test_a_csv_column_that_the_format_needs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt,topic\na,b\n")
    with pytest.raises(DataError, match=r"row 1: field 'completion' or 'response' is missing; the row has"):
        read(tmp_path / "a.csv", format="completion")


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_no_first_row_can_be_read(tmp_path: Path, on_bad_row: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"oops\nno\n")
    message = r"line 1: not JSON" if on_bad_row == "fail" else r"none of the first 2 rows can be read: .* line 1: not JSON"
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl", on_bad_row=on_bad_row)
    if on_bad_row == "skip":
        _, records, drops = read(tmp_path / "a.jsonl", on_bad_row="skip", format="completion")
        assert (records, len(drops)) == ([], 2)
