"""The seed stage over real files: what it reads, keeps, drops and tells."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from seed_bench import prompt_text

from selfreward.artifacts import Artifact, Run, read_json, read_rows
from selfreward.config import Config
from selfreward.errors import DataError
from selfreward.filters import normalise, rouge_l
from selfreward.stages import seed
from selfreward.types import Demonstration, Drop, EftExample, Prompt, RankedSet

TREES = Path(__file__).parents[2].parent / "shared" / "data" / "oasst_en_trees.jsonl"
SMALL = {"num_ift": 10, "num_eft": 8, "num_heldout_prompts": 4, "num_heldout_ranked": 3}
TABLES: dict[str, type[Any]] = {
    "ift": Demonstration, "eft_train": EftExample, "ranked_train": RankedSet, "ranked_heldout": RankedSet,
    "prompts_heldout": Prompt,
}  # fmt: skip


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in rows), encoding="utf-8")
    return str(path)


def completions(start: int, number: int) -> list[dict[str, Any]]:
    return [{"prompt": prompt_text(start + i), "response": f"answer {i}"} for i in range(number)]


def ranked(start: int, number: int) -> list[dict[str, Any]]:
    replies = [{"text": "good one", "rank": 0}, {"text": "bad", "rank": 1}, {"text": "worse", "rank": 2}]
    return [{"prompt": prompt_text(start + i), "responses": replies} for i in range(number)]


def targets(start: int, number: int) -> list[dict[str, Any]]:
    return [
        {"instruction": prompt_text(start + i), "response": "r", "judgement": f"So. Score: {i % 6}", "score": i % 6}
        for i in range(number)
    ]


def made(make_config: Callable[..., Config], **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    sections = {name: settings.pop(name) for name in ("mode", "eft", "name") if name in settings}
    with Run.open(make_config(seed={**SMALL, **settings}, **sections)) as run:
        artifact = seed.run(run)
    return artifact, read_json(artifact.path / "record.json")


def tables(artifact: Artifact) -> dict[str, list[Any]]:
    return {name: read_rows(artifact.path / f"{name}.parquet", cls) for name, cls in TABLES.items()}


def prompts_of(items: list[Any]) -> list[str]:
    return [getattr(item, "prompt", None) or getattr(item, "text", None) or item.instruction for item in items]


def test_several_sources_fill_the_tables_together(make_config: Callable[..., Config], tmp_path: Path) -> None:
    sources = [
        {"path": write(tmp_path / "ift.jsonl", completions(0, 30))},
        {"path": write(tmp_path / "ranked.jsonl", ranked(100, 20)), "role": "ranked"},
        {"path": write(tmp_path / "eft.jsonl", targets(200, 5))},
    ]
    artifact, record = made(make_config, sources=sources)
    found = tables(artifact)
    assert {name: len(items) for name, items in found.items()} == {
        "ift": 10, "eft_train": 5, "ranked_train": 8, "ranked_heldout": 3, "prompts_heldout": 4,
    }  # fmt: skip
    assert all(item.id.startswith("s2-") for item in found["ranked_heldout"]), "further sources have names of their own"
    assert all(not item.id.startswith("s") for item in found["ift"])
    assert {item.judgement for item in found["eft_train"]} == {f"So. Score: {score}" for score in range(5)}
    notes = record["notes"]["sources"]
    assert [source["rows"] for source in notes] == [30, 20, 5]
    assert [source["format"] for source in notes] == ["completion", "ranked", "eft"]
    assert all(source["detected"] for source in notes)
    assert [sum(source["kept"].values()) + sum(source["dropped"].values()) for source in notes] == [30, 20, 5]
    for source in notes:
        replies = source["replies"]
        assert replies["in"] == replies["kept"] + sum(replies["dropped"].values())
    assert notes[1]["replies"] == {"in": 60, "kept": 33, "dropped": {"row_dropped": 27}}
    assert sum(notes[2]["scores"].values()) == 5
    assert notes[0]["words"]["prompts"] == {"min": 6, "5%": 6, "50%": 6, "95%": 6, "max": 6}
    rejects = read_rows(artifact.path / "rejects.parquet", Drop)
    assert dict(Counter(drop.reason for drop in rejects)) == record["counts"]["dropped"]
    assert record["counts"]["in"] == 55 == record["counts"]["out"] + len(rejects)


def test_another_source_moves_no_prompt_of_the_first(make_config: Callable[..., Config], tmp_path: Path) -> None:
    ift = {"path": write(tmp_path / "ift.jsonl", completions(0, 30)), "role": "ift"}
    asked = {"path": write(tmp_path / "asked.jsonl", [{"prompt": prompt_text(300 + i)} for i in range(9)])}
    more = {"path": write(tmp_path / "more.jsonl", targets(200, 5))}
    first, _ = made(make_config, sources=[ift, asked], mode="no-eft", name="one")
    second, _ = made(make_config, sources=[ift, asked, more], name="two")
    assert [tables(first)[name] for name in ("ift", "prompts_heldout")] == [
        tables(second)[name] for name in ("ift", "prompts_heldout")
    ]


def test_sources_share_no_id(make_config: Callable[..., Config], tmp_path: Path) -> None:
    own = [{"id": f"s2-{n}", **item} for n, item in enumerate(targets(0, 4), start=1)]
    sources = [
        {"path": write(tmp_path / "own.jsonl", own)},
        {"path": write(tmp_path / "more.jsonl", targets(100, 4))},
        {"path": write(tmp_path / "ift.jsonl", completions(200, 30))},
    ]
    artifact, record = made(make_config, sources=sources)
    found = [item.id for item in tables(artifact)["eft_train"]]
    assert sorted(found) == ["s2-1", "s2-1-1", "s2-2", "s2-2-2", "s2-3", "s2-3-3", "s2-4", "s2-4-4"]
    everything = [item.id for items in tables(artifact).values() for item in items]
    everything += [drop.id for drop in read_rows(artifact.path / "rejects.parquet", Drop)]
    assert len(set(everything)) == len(everything) == record["counts"]["in"] == 38


def test_a_cap_ends_the_reading_and_is_told(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [*completions(0, 20), {"prompt": "  ", "response": "r"}, *completions(50, 5), "{ never looked at"]
    sources = [{"path": write(tmp_path / "rows.jsonl", rows), "cap": 22}]
    _, record = made(make_config, sources=sources, mode="no-eft")
    source = record["notes"]["sources"][0]
    assert (source["rows"], source["stopped_at_cap"]) == (23, True), "a row without a prompt is no record"
    _, record = made(
        make_config,
        sources=[{**sources[0], "cap": 5000, "path": write(tmp_path / "b.jsonl", rows[:-1])}],
        name="b",
        mode="no-eft",
    )
    assert record["notes"]["sources"][0]["stopped_at_cap"] is False


def test_a_cap_keeps_the_counts_of_what_was_passed(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        parent = None
        for depth in range(3):  # a first turn, its reply, and one deeper turn; the reply comes last
            name = f"m{number}-{depth}"
            rows.append({"message_id": name, "parent_id": parent, "text": prompt_text(3 * number + depth), "rank": 0})
            parent = name
        rows[-2:] = [rows[-1], rows[-2]]
        rows.append({"message_id": f"lost{number}", "parent_id": "gone", "text": "who?"})
    path = write(tmp_path / "table.jsonl", rows)
    _, record = made(make_config, sources=[{"path": path, "cap": 20}], mode="no-eft")
    source = record["notes"]["sources"][0]
    assert (source["format"], source["rows"], source["stopped_at_cap"]) == ("oasst-messages", 20, True)
    lost = source["replies"]["dropped"]
    assert (lost["deeper_turn"], lost["no_parent"]) == (20, 19), "the last one stands behind the cap"
    assert source["replies"]["in"] == source["replies"]["kept"] + sum(lost.values())


@pytest.mark.skipif(not TREES.is_file(), reason="needs ../shared/data/oasst_en_trees.jsonl beside the repository")
def test_real_trees_are_split_apart(make_config: Callable[..., Config]) -> None:
    sizes = {"num_ift": 24, "num_eft": 40, "num_heldout_prompts": 8, "num_heldout_ranked": 6}
    artifact, record = made(make_config, sources=[{"format": "oasst-trees", "lang": "en"}], path=str(TREES), **sizes)
    found = tables(artifact)
    assert {name: len(items) for name, items in found.items()} == {
        "ift": 24, "eft_train": 0, "ranked_train": 27, "ranked_heldout": 6, "prompts_heldout": 8,
    }  # fmt: skip
    groups = [
        prompts_of(found["ranked_heldout"] + found["prompts_heldout"]),
        prompts_of(found["ranked_train"]),
        prompts_of(found["ift"]),
    ]
    for place, texts in enumerate(groups):
        for others in groups[place + 1 :]:
            assert not {normalise(text) for text in texts} & {normalise(text) for text in others}
            assert max(rouge_l(a, b) for a in texts for b in others) <= 0.7
    source = record["notes"]["sources"][0]
    assert (source["format"], source["detected"], source["rows"]) == ("oasst-trees", False, 70)
    assert source["dropped"] == {"over_limit": 1, "synthetic": 4}
    assert source["languages"].keys() == {"en"}
    everything = {"num_ift": 3200, "num_eft": 1630, "num_heldout_prompts": 256, "num_heldout_ranked": 190}
    artifact, _ = made(
        make_config, sources=[{"format": "oasst-trees", "lang": "en"}], path=str(TREES), name="paper", **everything
    )
    shares = {name: len(items) for name, items in tables(artifact).items()}
    assert all(shares[name] >= 1 for name in ("ift", "ranked_train", "ranked_heldout", "prompts_heldout"))
    assert sum(shares.values()) >= 64, "70 trees, four of them synthetic"


def test_bad_rows_stop_or_are_skipped_and_counted(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [*completions(0, 20), '{"prompt": "cut', {"prompt": "no response", "response": 3}, *targets(50, 0)]
    sources = [{"path": write(tmp_path / "rows.jsonl", rows)}]
    with pytest.raises(DataError, match=r"rows.jsonl line 21"):
        made(make_config, sources=sources, mode="no-eft")
    artifact, record = made(make_config, sources=sources, mode="no-eft", on_bad_row="skip", name="skipping")
    assert record["counts"]["dropped"]["bad_row"] == 2
    bad = [drop for drop in read_rows(artifact.path / "rejects.parquet", Drop) if drop.reason == "bad_row"]
    assert any("cut" in drop.item for drop in bad), "what it was is kept"
    assert not list((artifact.path).glob(".tmp-*"))


def test_nothing_to_learn_judging_from_stops_at_once_and_names_the_ways_out(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    sources = [{"path": write(tmp_path / "ift.jsonl", completions(0, 30))}]
    with pytest.raises(DataError, match=r"nothing to teach M1 to judge.*role ranked.*role eft.*mode=no-eft.*eft.min_targets=0"):
        made(make_config, sources=sources)
    for allowed in ({"mode": "no-eft"}, {"eft": {"min_targets": 0}}):
        artifact, _ = made(make_config, sources=sources, **allowed)
        assert tables(artifact)["eft_train"] == []
    with pytest.raises(DataError, match=r"seed.num_eft=0"):
        made(make_config, sources=[{"path": write(tmp_path / "r.jsonl", ranked(0, 30))}], num_eft=0, name="none")


@pytest.mark.parametrize(
    ("rows", "role", "message"),
    [
        (lambda: [{"prompt": prompt_text(i)} for i in range(9)], "auto", r"leave no IFT pair.*9 rows read.*role ift"),
        (lambda: completions(0, 9), "ift", r"leave no held-out prompt.*role prompts"),
    ],
)
def test_a_table_that_stays_empty_stops_the_run(
    make_config: Callable[..., Config], tmp_path: Path, rows: Callable[[], list[Any]], role: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        made(make_config, sources=[{"path": write(tmp_path / "rows.jsonl", rows()), "role": role}], mode="no-eft")


def test_a_target_that_does_not_say_its_score_leaves_no_finished_stage(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    wrong = {**targets(100, 1)[0], "judgement": "So. Score: 5", "score": 3}
    people = write(tmp_path / "people.jsonl", completions(0, 30))
    sources = [{"path": people}, {"path": write(tmp_path / "eft.jsonl", [*targets(50, 5), wrong])}]
    with pytest.raises(DataError, match=r"eft\.jsonl: EFT target 's2-6'.*reads 5 from its judgement, but its score is 3"):
        made(make_config, sources=sources, num_heldout_ranked=1)
    # Corrected, the same run goes on: nothing wrong was kept as finished.
    write(tmp_path / "eft.jsonl", targets(50, 6))
    artifact, _ = made(make_config, sources=sources, num_heldout_ranked=1)
    assert len(tables(artifact)["eft_train"]) == 6


LONG = """
import json, random, sys
from pathlib import Path
from selfreward.artifacts import Run, read_json
from selfreward.config import parse_config
from selfreward.stages import seed

# Not getrusage: its peak is the parent's where that was larger.
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

folder, size, sizes = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
chance = random.Random(0)
words = [f"word{i}" for i in range(5000)]
written = number = 0
with (folder / "long.jsonl").open("w") as file:
    while written < size:
        number += 1
        replies = [{"text": " ".join(chance.choices(words, k=90)), "rank": rank} for rank in (0, 1)]
        row = {"prompt": " ".join(chance.choices(words, k=chance.randint(4, 60))), "responses": replies}
        written += file.write(json.dumps(row) + "\\n")
sources = [{"path": str(folder / "long.jsonl")}]
import pyarrow.parquet  # what the stage imports when it begins
before = peak()
with Run.open(parse_config({"name": "long", "run_dir": str(folder / "runs"), "seed": {"sources": sources, **sizes}})) as run:
    made = seed.run(run)
print(json.dumps({"rows": number, "grown_mb": (peak() - before) / 1024, "record": read_json(made.path / "record.json")}))
"""


def split_long_file(folder: Path, megabytes: int, **sizes: int) -> dict[str, Any]:
    command = [sys.executable, "-c", LONG, str(folder), str(megabytes << 20), json.dumps(sizes)]
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=500).stdout)
    counts = told["record"]["counts"]
    assert counts["in"] == told["rows"] == counts["out"] + sum(counts["dropped"].values())
    return told


on_linux = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")


@on_linux
def test_memory_does_not_hold_the_file(tmp_path: Path) -> None:
    sizes = {"num_ift": 20, "num_eft": 10, "num_heldout_prompts": 5, "num_heldout_ranked": 5}
    grown = []
    for megabytes in (12, 36):
        (tmp_path / str(megabytes)).mkdir()
        told = split_long_file(tmp_path / str(megabytes), megabytes, **sizes)
        assert told["record"]["notes"]["num_ift"] == 20
        grown.append(told["grown_mb"])
    assert grown[1] - grown[0] < 12, "24 more megabytes of rows are read, of which only the digests are kept"


@on_linux
@pytest.mark.slow
def test_memory_stays_small_on_a_long_file(tmp_path: Path) -> None:
    told = split_long_file(tmp_path, 220)
    assert told["record"]["notes"]["num_ift"] == 3200
    assert told["grown_mb"] < 400
