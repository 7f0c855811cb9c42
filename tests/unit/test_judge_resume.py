"""`selfreward judge` goes on where it was stopped or killed, refuses other data, and does not hold its file in memory."""

import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from judge_bench import judge, ranked, script, write
from steps_bench import Calling

from selfreward.artifacts import iter_rows
from selfreward.config import default_config
from selfreward.errors import DataError, UsageError
from selfreward.judge_tool import Options, ScoredResponse, judge_data
from selfreward.progress import NO_STEPS, NullProgress


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of the work, from outside: the same command takes what is finished and ends as if whole."""
    data = ranked(tmp_path / "r.jsonl", 60)
    command = [sys.executable, "-m", "selfreward.cli", "judge", str(data), "--model", "scripted:random", "--out"]
    settings = ["engine.chunk_size=6", "--json"]
    out = tmp_path / "s.parquet"
    with subprocess.Popen([*command, str(out), *settings], stdout=subprocess.DEVNULL) as process:
        while len(list(tmp_path.rglob("responses-*.parquet"))) < 5:
            assert process.poll() is None, "it must be killed before it ends"
            time.sleep(0.005)
        process.kill()
    done = len(list(tmp_path.rglob("responses-*.parquet")))
    assert 5 <= done < 90
    assert not out.exists()
    stamps = {part: part.stat().st_mtime_ns for part in tmp_path.rglob("responses-0000[0-3]-*.parquet")}
    seen: list[dict[Path, int]] = []

    class Watching(NullProgress):
        @contextmanager
        def task(self, description: str, total: int | None) -> Any:
            yield NO_STEPS
            seen.append({part: part.stat().st_mtime_ns for part in stamps})

    config = default_config("judge", ["engine.chunk_size=6"])
    again = judge_data(Options(data, "scripted:random", out=out), config, Watching())
    assert seen == [stamps]
    whole = judge(data, "scripted:random", out=tmp_path / "w.parquet")
    assert again | {"out": None} == whole | {"out": None}
    assert out.read_bytes() == (tmp_path / "w.parquet").read_bytes()


def test_memory_does_not_hold_the_texts(tmp_path: Path) -> None:
    """A file of 30 MB, of which no more than the table's row group and a chunk are in memory at a time."""
    model = script(tmp_path / "j.json", {}, default="Score: 3")
    config = default_config("judge", ["engine.chunk_size=10"])
    judge(write(tmp_path / "one.jsonl", {"instruction": "q", "output": "x"}), model, config, out=tmp_path / "one.parquet")
    data = write(tmp_path / "long.jsonl", *({"instruction": f"q{n}", "output": f"{n}" + "x" * 100_000} for n in range(300)))
    tracemalloc.start()
    judge(data, model, config, num_votes=1, out=tmp_path / "scored.parquet")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15_000_000, f"{peak:,} bytes for a file of {data.stat().st_size:,}"
    assert sum(1 for _ in iter_rows(tmp_path / "scored.parquet", ScoredResponse)) == 300


def test_a_file_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    data = ranked(tmp_path / "r.jsonl", 4)

    class Changing(NullProgress):
        @contextmanager
        def task(self, description: str, total: int | None) -> Any:
            ranked(data, 5)
            yield NO_STEPS

    with pytest.raises(DataError, match=r"r\.jsonl changed while it was judged"):
        judge_data(Options(data, "scripted:random", out=tmp_path / "s.parquet"), default_config("judge"), Changing())
    assert not (tmp_path / "s.parquet").exists()


class Interrupting(NullProgress):
    """Ctrl-C after the first chunk."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Any:
        def advance(count: int) -> None:
            raise KeyboardInterrupt

        yield Calling(advance)


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    data, config = ranked(tmp_path / "r.jsonl"), default_config("judge", ["engine.chunk_size=6"])
    options = Options(data, "scripted:random", agreement=True, out=tmp_path / "s.parquet")
    with pytest.raises(KeyboardInterrupt):
        judge_data(options, config, Interrupting())
    parts = list((tmp_path / "s.parquet.run").rglob("responses-*.parquet"))
    assert len(parts) == 1
    assert not (tmp_path / "s.parquet").exists()
    before = parts[0].stat().st_mtime_ns
    seen: list[int] = []

    class Watching(NullProgress):
        @contextmanager
        def task(self, description: str, total: int | None) -> Any:
            seen.append(parts[0].stat().st_mtime_ns)
            yield NO_STEPS

    again = judge_data(options, config, Watching())
    assert seen == [before], "the finished part is taken as it is"
    whole = judge(data, "scripted:random", config, agreement=True)
    assert again["figures"] == whole["figures"]
    assert judge_data(options, config, NullProgress()) == again, "a finished one is shown again"


def test_other_settings_or_data_need_another_place(tmp_path: Path) -> None:
    data, out = ranked(tmp_path / "r.jsonl", 2), tmp_path / "s.parquet"
    judge(data, "scripted:random", agreement=True, out=out)
    with pytest.raises(UsageError, match=r"judge\.num_votes was 3, is 1.*Give another --out, or delete .*s\.parquet\.run"):
        judge(data, "scripted:random", agreement=True, out=out, num_votes=1)
    ranked(data, 3)
    with pytest.raises(
        UsageError,
        match=r"the data \(or --limit, --format\) changed.*or delete .*s\.parquet\.run and .*s\.parquet to",
    ):
        judge(data, "scripted:random", agreement=True, out=out)
    (tmp_path / "mine.parquet").write_text("precious")
    with pytest.raises(UsageError, match=r"is there already, without the folder .*mine.parquet.run of this command"):
        judge(data, "scripted:random", agreement=True, out=tmp_path / "mine.parquet")
    assert (tmp_path / "mine.parquet").read_text() == "precious"
