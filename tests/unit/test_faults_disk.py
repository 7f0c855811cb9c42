"""A disk that is full, read-only, limited or gone: one line that names the path, what is needed and the way on.

`/dev/full` stands for a full disk: a write to it fails as on one. What is not written there is the real disk's.
"""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_disk import SRC, on_small_disk
from stage_bench import Stages, record

from selfreward.artifacts import Run, Stage, read_rows
from selfreward.disk import check_writable, in_units, need_space, refusal_of, writing
from selfreward.errors import ModelError, StorageError
from selfreward.storage import TEMPORARY_PREFIX, replacing, write_bytes, write_json, write_rows, writing_rows
from selfreward.types import Counts, Drop, Prompt

PROMPTS = [Prompt(f"p{place}", f"question {place}", "sampled") for place in range(12)]
FULL = r"{} cannot be written: no space is left on its disk \([^)]*left.*\); free some space there"


def full_at(path: Path) -> None:
    """From now on there is no room for this file; files beside it can be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}").symlink_to("/dev/full")


# --- single files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, b"x" * 5000),
        lambda path: write_json(path, {"a": 1}),
        lambda path: write_rows(path, PROMPTS),
    ],
    ids=["bytes", "json", "rows"],
)
def test_a_full_disk_names_the_file_and_what_it_needs_and_leaves_the_old_one(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "a file"
    path.write_text("old")
    full_at(path)
    with pytest.raises(StorageError, match=FULL.format(path)) as caught:
        write(path)
    assert " needed, " in str(caught.value)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a file"], "nothing half-written is left"
    write(path)
    assert path.read_bytes() != b"old"


def test_a_stream_of_rows_meets_a_full_disk(tmp_path: Path) -> None:
    full_at(tmp_path / "drops.parquet")

    def stream() -> None:
        with writing_rows(tmp_path / "drops.parquet", Drop) as write:
            for place in range(20_000):
                write(Drop(f"d{place}", "empty", "x" * 40))

    with pytest.raises(StorageError, match="no space is left"):
        stream()
    assert not list(tmp_path.iterdir())


def test_what_the_block_itself_raises_is_not_taken_for_the_disks_fault(tmp_path: Path) -> None:
    locked = tmp_path / "elsewhere" / "input.json"
    with pytest.raises(PermissionError), replacing(tmp_path / "a" / "out.json"):
        raise PermissionError(errno.EACCES, "Permission denied", str(locked))
    with pytest.raises(ModelError, match="no weights"), writing(tmp_path):
        raise ModelError("no weights")
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "x"))


def test_libraries_that_are_no_python_are_understood(tmp_path: Path) -> None:
    error = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    refusal = refusal_of(error, tmp_path)
    assert refusal is not None
    assert "left for temporary files in" in str(refusal), "no one says which disk it was"
    assert refusal_of(Exception("header too large"), tmp_path) is None


def test_a_limit_of_the_process_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from selfreward.storage import write_bytes\n"
        "from selfreward.errors import StorageError\n"
        "try: write_bytes(sys.argv[1], b'x' * 5000)\n"
        "except StorageError as error: print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(SRC)},
    )  # fmt: skip
    assert "larger than this process may write; raise the limit (ulimit -f)" in done.stdout


def test_sizes_are_for_people() -> None:
    assert [in_units(size) for size in (0, 999, 1000, 2_300_000, 14_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.3 MB",
        "14.0 GB",
    ]


def test_room_is_looked_for_before_work(tmp_path: Path) -> None:
    need_space(tmp_path / "not there yet", 1, "a letter")
    with pytest.raises(StorageError, match=r"the model needs 1000000\.0 TB in .* left; free some space.*Nothing was begun"):
        need_space(tmp_path, 10**18, "the model")


# --- folders that cannot be written -----------------------------------------------------------------------------------


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "runs" / "x"):
        with pytest.raises(StorageError, match="a part of the path is a file, not a folder"):
            check_writable(wrong)
    check_writable(tmp_path / "new" / "runs" / "x")
    assert [file.name for file in tmp_path.iterdir()] == ["file"], "looking leaves nothing"


def test_a_path_that_is_too_long_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match="the path is too long for its disk; shorten name or run_dir"):
        check_writable(tmp_path / ("x" * 300))
    with pytest.raises(StorageError, match="too long"):
        Run.open(Stages.config({**settings, "name": "x" * 300}))
    with pytest.raises(StorageError, match="too long"):
        Run.open(Stages.config({**settings, "run_dir": str(tmp_path / "/".join(["y" * 200] * 25))}))


READ_ONLY = """
mkdir "$DISK/runs" && mount -o remount,ro "$DISK"
"$PYTHON" -c '
import sys
from selfreward.disk import check_writable
from selfreward.errors import StorageError
try: check_writable(sys.argv[1])
except StorageError as error: print(error)
' "$DISK/runs/trial"
"""


def test_a_disk_mounted_read_only_is_found_by_trying(tmp_path: Path) -> None:
    done = on_small_disk(tmp_path / "disk", READ_ONLY)
    assert "runs/trial cannot be written: its disk is mounted read-only; make it writable" in done.stdout, done.stderr


# --- inside a run -----------------------------------------------------------------------------------------------------


def ask(stage: Stage, stop_at: str | None = None) -> Counts:
    """Three parts, an artifact, a JSON file; the disk is full for one of them."""
    num_parts = 0

    def answer(chunk: Any) -> list[Prompt]:
        nonlocal num_parts
        num_parts += 1
        if stop_at == "part" and num_parts == 2:
            (stage.path / "parts").rename(stage.path / "kept")
            (stage.path / "parts").write_text("no folder")
        return list(chunk)

    rows = stage.chunks("answers", PROMPTS, 4, answer, Prompt)
    for name in ("answers.parquet", "figures.json", "rejects.parquet", "record.json"):
        if stop_at == name:
            full_at(stage.path / name)
    stage.write_rows("answers", rows)
    stage.write_json("figures", {"n": len(rows)})
    return Counts(len(rows), len(rows))


@pytest.mark.parametrize("name", ["answers.parquet", "figures.json", "rejects.parquet", "record.json"])
def test_a_stage_stops_at_every_file_and_goes_on(stages: Stages, name: str) -> None:
    calm = stages.run(name="calm").stage("round-1/samples", {}, {}, ask)
    run = stages.run(name="full")
    with pytest.raises(StorageError, match=FULL.format(rf".*/round-1/samples/{name}")), run:
        run.stage("round-1/samples", {}, {}, lambda stage: ask(stage, name))
    folder = run.dir.samples(1)
    assert not (folder / "record.json").exists()
    assert len(list((folder / "parts").glob("*.parquet"))) == 3, "what was committed is kept"
    last = json.loads(run.dir.log.read_text().splitlines()[-1])
    assert (last["message"], last["data"]["error"][:12]) == ("run stopped", "StorageError")
    again = stages.run(name="full").stage("round-1/samples", {}, {}, ask)
    assert record(again)["outputs"] == record(calm)["outputs"]


def test_a_part_that_cannot_be_committed_stops_the_stage(stages: Stages) -> None:
    run = stages.run()
    with (
        pytest.raises(StorageError, match=r"parts/answers-00001-.* cannot be written: a file stands where a folder must be"),
        run,
    ):
        run.stage("round-1/samples", {}, {}, lambda stage: ask(stage, "part"))
    stages.close()
    folder = run.dir.samples(1)
    (folder / "parts").unlink()
    (folder / "kept").rename(folder / "parts")
    assert len(list((folder / "parts").glob("*.parquet"))) == 1
    assert read_rows(stages.run().stage("round-1/samples", {}, {}, ask).path / "answers.parquet", Prompt) == PROMPTS


def test_a_library_that_meets_a_full_disk_inside_a_stage(stages: Stages) -> None:
    def save(stage: Stage) -> Counts:
        with Path("/dev/full").open("wb", buffering=0) as file:  # as a library saves weights
            file.write(b"weights")
        return Counts(0, 0)

    run = stages.run()
    with pytest.raises(StorageError, match="m1 cannot be written: no space is left on its disk"):
        run.stage("m1", {}, {}, save)


def test_a_log_that_cannot_be_written_stops_the_run_and_hides_no_other_error(stages: Stages, tmp_path: Path) -> None:
    run = stages.run()
    (handler,) = run.logger.handlers
    stream = handler.stream
    handler.stream = Path("/dev/full").open("a")  # noqa: SIM115 - closed with the log
    with pytest.raises(StorageError, match=r"run\.log cannot be written: no space is left"):
        run.stage("seed", {}, {}, ask)
    with pytest.raises(ModelError, match="the first error") as caught, run:
        raise ModelError("the first error")
    assert any("run.log cannot be written" in note for note in caught.value.__notes__)
    stream.close()


def test_config_json_on_a_full_disk(settings: dict[str, Any]) -> None:
    config = Stages.config(settings)
    root = Path(config.run_dir) / config.name
    Run.open(config).close()
    for name in ("environment.json", "config.json"):
        run = Run.open(config)
        full_at(root / name)
        with pytest.raises(StorageError, match=FULL.format(rf".*{name}")), run:
            run.stage("seed", {}, {}, lambda stage: Counts(0, 0))
    with Run.open(config) as run:
        run.stage("seed", {}, {}, lambda stage: Counts(0, 0))
    assert (root / "config.json").is_file()
