"""bench/chaos: what its comparison sees and forgives, how moments are drawn, and when a watched run has come to one."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CHAOS = Path(__file__).parents[2] / "bench" / "chaos"
sys.path.insert(0, str(CHAOS))

from compare import differences, digest, half_written, read_content  # noqa: E402
from moments import KILLS_IN_A_RUN, OPENING, REPORT, Moment, Span, Watch, draw, group, kind_of  # noqa: E402

TIMELINE = {
    OPENING: Span(0.3, 2),
    "seed": Span(1.0, 5),
    "m1": Span(6.0, 8),
    "m1/evals": Span(3.0, 9),
    "round-1/samples": Span(2.0, 12),
    "round-1/evals": Span(3.0, 9),
    REPORT: Span(1.5, 4),
}


def log(root: Path, *told: tuple[str, str]) -> None:
    with (root / "run.log").open("a") as file:
        for message, stage in told:
            file.write(json.dumps({"time": "t", "message": message, "data": {"stage": stage}}) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run of one finished stage."""
    root = tmp_path / "run"
    (root / "m1/checkpoint").mkdir(parents=True)
    (root / "m1/checkpoint/model.safetensors").write_bytes(bytes(range(200)))
    pq.write_table(pa.table({"text": ["a", "b"]}), root / "m1/rejects.parquet")
    (root / "m1/history.json").write_text('[{"step": 1, "loss": 0.5}]')
    outputs = {name: digest(root / "m1" / name) for name in ("checkpoint/model.safetensors", "rejects.parquet", "history.json")}
    record = {
        "stage": "m1",
        "started": "2026-01-01",
        "seconds": 1.5,
        "commit": "c0",
        "tokens": {"prompt": 3},
        "outputs": outputs,
    }
    (root / "m1/record.json").write_text(json.dumps(record))
    (root / "environment.json").write_text('{"python": "3.11", "commit": "c0"}')
    (root / "config.json").write_text('{"name": "demo"}')
    (root / "summary.json").write_text('{"seconds": 3.5, "rounds": [{"seconds": {"pairs": 0.1}, "counts": {"pairs": 4}}]}')
    (root / "report.html").write_text(
        f"<p>2026-01-02 03:04:05 UTC, took 3.5 s and 2 min 05 s, {'ab' * 20}</p><p>oracle 3.05</p>"
    )
    log(root, ("stage started", "m1"), ("stage finished", "m1"))
    return root


def test_a_changed_byte_is_seen_in_every_file_that_is_compared(root: Path) -> None:
    before = read_content(root)
    assert differences(before, read_content(root)) == []
    assert set(before) == {
        "config.json", "environment.json", "summary.json", "report.html",
        "m1/checkpoint/model.safetensors", "m1/rejects.parquet", "m1/history.json", "m1/record.json",
    }  # fmt: skip
    for name in before:
        data = (root / name).read_bytes()
        changed = bytearray(data)
        changed[2 if name.endswith((".json", ".html")) else len(data) // 2] ^= 1
        (root / name).write_bytes(changed)
        assert differences(before, read_content(root)) == [f"{name} differs"]
        (root / name).write_bytes(data)
    assert differences(before, read_content(root)) == []


def test_only_what_tells_when_work_was_done_is_forgiven(root: Path) -> None:
    before = read_content(root)

    def change(name: str, old: str, new: str) -> list[str]:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
        found = differences(before, read_content(root))
        (root / name).write_text(text)
        return found

    for old, new in (("2026-01-01", "2027-01-01"), ("1.5", "2.5"), ('"c0"', '"c1+changes"')):
        assert change("m1/record.json", old, new) == []
    assert change("m1/record.json", '"prompt": 3', '"prompt": 4') == ["m1/record.json differs"]
    assert change("environment.json", "c0", "c1") == []
    assert change("environment.json", "3.11", "3.12") == ["environment.json differs"]
    assert change("summary.json", "0.1", "0.2") == []
    assert change("summary.json", "4", "5") == ["summary.json differs"]
    for old, new in (("03:04", "03:09"), ("3.5 s", "4.5 s"), ("2 min 05 s", "1 min 59 s"), ("ab" * 20, "cd" * 20 + "+changes")):
        assert change("report.html", old, new) == []
    assert change("report.html", "3.05", "3.06") == ["report.html differs"]
    log(root, ("run opened", ""))
    assert differences(before, read_content(root)) == []


def test_missing_files_and_leftovers_are_differences(root: Path) -> None:
    before = read_content(root)
    (root / "m1/history.json").unlink()
    (root / "m1/parts").mkdir()
    for leftover in (".tmp-1-summary.json", "m1/parts/votes-00000-ab.parquet"):
        (root / leftover).write_bytes(b"")
    assert differences(before, read_content(root)) == [
        ".tmp-1-summary.json is left over",
        "m1/history.json is missing",
        "m1/parts/votes-00000-ab.parquet is left over",
    ]


def test_right_after_a_kill_nothing_half_written_may_count(root: Path) -> None:
    expected = read_content(root)
    assert half_written(root, expected) == []
    (root / "m1/.tmp-1-x.parquet").write_bytes(b"half")
    assert half_written(root, expected) == [], "a temporary name counts for nothing"
    whole = (root / "m1/rejects.parquet").read_bytes()
    (root / "m1/rejects.parquet").write_bytes(whole[:-5])
    first, second = half_written(root, expected)
    assert first == "m1 has a record, but rejects.parquet is not whole"
    assert second.startswith("m1/rejects.parquet cannot be read")
    (root / "m1/rejects.parquet").write_bytes(whole)
    record = (root / "m1/record.json").read_text()
    (root / "m1/record.json").write_text(record[:-9])
    assert half_written(root, expected) == ["m1/record.json differs right after the kill"]
    (root / "m1/record.json").unlink()
    assert half_written(root, expected) == ["m1 is finished by the log, but has no record"]


def test_the_seed_decides_the_moments_and_no_kind_is_missed() -> None:
    moments = draw(random.Random(3), TIMELINE, 40)
    assert moments == draw(random.Random(3), TIMELINE, 40)
    assert moments != draw(random.Random(4), TIMELINE, 40)
    assert len(moments) == 40
    for seed in range(20):
        drawn = draw(random.Random(seed), TIMELINE, 6)
        assert {kind_of(moment.stage) for moment in drawn} == {OPENING, "seed", "m1", "evals", "samples", REPORT}
        assert all(moment.event != "time" for moment in drawn), "one event of each kind comes first"
    in_time = [moment for moment in draw(random.Random(1), TIMELINE, 4006) if moment.event == "time"]
    assert all(0 <= moment.delay <= TIMELINE[moment.stage].seconds for moment in in_time)
    total = sum(span.seconds for span in TIMELINE.values())
    for key, span in TIMELINE.items():
        share = sum(moment.stage == key for moment in in_time) / len(in_time)
        assert share == pytest.approx(span.seconds / total, abs=0.03), key
    assert {moment.stage for moment in draw(random.Random(1), TIMELINE, 9, ["samples"])} == {"round-1/samples"}
    with pytest.raises(SystemExit, match=r"nonsense.*there are opening, seed"):
        draw(random.Random(1), TIMELINE, 9, ["nonsense"])


def test_the_kills_of_a_run_come_in_its_order() -> None:
    rng = random.Random(3)
    moments = draw(rng, TIMELINE, 50)
    runs = group(rng, moments, TIMELINE, 0)
    assert sorted(map(str, moments)) == sorted(str(moment) for run in runs for moment in run)
    assert {len(run) for run in runs[:-1]} == set(KILLS_IN_A_RUN)
    order = list(TIMELINE)
    for run in runs:
        places = [order.index(moment.stage) for moment in run]
        assert places == sorted(places)
    assert [len(run) for run in group(rng, moments[:9], TIMELINE, 4)] == [4, 4, 1]


def test_a_watch_tells_when_a_moment_has_come(tmp_path: Path) -> None:
    root = tmp_path / "run"
    watch = Watch(root, last_stage="m1")
    opening, second_file, record, later, report = (
        Moment(OPENING, "start", 0, 0.0),
        Moment("seed", "files", 2, 0.0),
        Moment("seed", "record", 0, 0.0),
        Moment("m1", "time", 0, 0.05),
        Moment(REPORT, "start", 0, 0.0),
    )

    def due() -> list[Moment]:
        watch.look()
        return [moment for moment in (opening, second_file, record, later, report) if watch.is_due(moment)]

    assert due() == []
    (root / "seed").mkdir(parents=True)
    assert due() == [opening]
    log(root, ("stage started", "seed"))
    due()
    for name, expected in (("a", []), ("b", [second_file]), ("record.json", [second_file, record])):
        (root / "seed" / name).touch()
        assert due() == [opening, *expected]
    log(root, ("stage finished", "seed"), ("stage started", "m1"))
    assert due() == [opening, second_file, record]
    time.sleep(0.06)
    assert due() == [opening, second_file, record, later]
    log(root, ("stage finished", "m1"))
    assert due() == [opening, second_file, record, later, report]
    watch.close()
    assert list(watch.timeline()) == [OPENING, "seed", "m1", REPORT]
    assert watch.timeline()["seed"].num_changes == 3


def test_a_stage_that_is_over_is_due_at_once(tmp_path: Path) -> None:
    log(tmp_path, ("stage started", "seed"))
    watch = Watch(tmp_path, last_stage="m1")
    log(tmp_path, ("run opened", ""), ("stage reused", "seed"))
    watch.look()
    assert watch.is_due(Moment("seed", "files", 9, 0.0))
    assert not watch.is_due(Moment("m1", "start", 0, 0.0))


def test_a_run_that_fails_by_itself_is_no_pass(tmp_path: Path) -> None:
    command = [sys.executable, str(CHAOS), "--seed", "1", "--kills", "3", "--keep", str(tmp_path), "engine.nonsense=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "seed 1, 3 kills, 1 at a time"
    assert "nonsense" in lines[1]
    assert lines[-1] == "0 passed, 3 failed"


def test_a_run_that_does_not_go_on_fails_its_kill(tmp_path: Path) -> None:
    from attempts import Kill, Place, Reference, disturbed

    kill = Kill(1, Moment("seed", "start", 0, 0.0))
    disturbed(Place(tmp_path / "run", ["engine.nonsense=1"]), [kill], Reference({}, "", TIMELINE, 1.0))
    assert len(kill.problems) == 1
    assert kill.problems[0].startswith("exit code 2: ")
    assert not kill.ended
