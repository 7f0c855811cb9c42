"""Faults met by a whole run from the command line: one clear line, nothing lost, and the same artifacts in the end."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint_server import EndpointServer, Fault, refusal, serving
from small_disk import on_small_disk
from test_pipeline_scripted import SETTINGS, write_script, write_seeds

from selfreward import cli
from selfreward.artifacts import read_json
from selfreward.config import load_config
from selfreward.engines.scripted import ScriptedEngine
from selfreward.pipeline import stage_keys
from selfreward.types import Message, Request, Sampling

KEY = "sk-very/secret+0123456789"
SMALL: dict[str, Any] = {**SETTINGS, "num_rounds": 1, "replay": {"num_items": 0}}

Said = tuple[int, str, str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`command("run", ...)`: exit code, standard output, standard error, as a person gets them."""

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["selfreward", *arguments])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return call


def write_config(folder: Path, tiny_model_dir: Path, **changes: Any) -> Path:
    """A config, its script and its seeds in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {
        **SMALL,
        "name": "small",
        "run_dir": str(folder / "runs"),
        "model": {"path": str(tiny_model_dir)},
        "engine": {"name": "scripted", "script": str(write_script(folder / "script.json")), "threads": 1, "device": "cpu"},
        "seed": {"sources": [{"format": "seed-folder"}], "path": str(write_seeds(folder / "seeds"))},
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return folder / "config.yaml"


def outputs(config_file: Path, root: Path | None = None) -> dict[str, Any]:
    """Stage -> hash of every file that it made."""
    config = load_config(config_file)
    root = root or Path(config.run_dir) / config.name
    return {key: read_json(root / key / "record.json")["outputs"] for key in stage_keys(config)}


def is_one_clear_line(said: Said) -> bool:
    """An error of ours, in one line, with exit code 1, and no traceback."""
    code, _, err = said
    errors = [line for line in err.splitlines() if line.startswith(("error:", "unexpected"))]
    return code == 1 and len(errors) == 1 and errors[0].startswith("error:") and "Traceback" not in err


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Any]:
    """What an undisturbed run makes."""
    from selfreward.artifacts import Run
    from selfreward.pipeline import run_pipeline

    config_file = write_config(tmp_path_factory.mktemp("calm"), tiny_model_dir)
    with Run.open(load_config(config_file)) as run:
        run_pipeline(run)
    return outputs(config_file)


# --- disk -----------------------------------------------------------------------------------------------------------------


def test_a_disk_that_grows_page_by_page(tmp_path: Path, tiny_model_dir: Path, calm: dict[str, Any]) -> None:
    disk = tmp_path / "small disk"
    config_file = write_config(tmp_path / "c", tiny_model_dir, run_dir=str(disk / "runs"))
    driver = Path(__file__).parent / "growing_disk.py"
    script = '"$PYTHON" "$1" "$2" "$DISK" 16384 > "$3" && cp -r "$DISK/runs" "$4"'
    kept = tmp_path / "kept"
    done = on_small_disk(disk, script, str(driver), str(config_file), str(tmp_path / "said"), str(kept), size="8m")
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    *full, last = attempts
    assert last["code"] == 0, last
    assert len(full) >= 8
    for attempt in full:
        assert is_one_clear_line((attempt["code"], "", attempt["said"])), attempt
        (line,) = [line for line in attempt["said"].splitlines() if line.startswith("error:")]
        assert re.search(r"no space is left on its disk \(.* left.*\)|needs .* but its disk has .* left", line), line
        assert str(disk) in line
        assert "the same command then goes on from there" in line
    said = "\n".join(attempt["said"] for attempt in full)
    for wanted in (r"\.parquet cannot", r"\.json cannot", "the model of stage"):
        assert re.search(wanted, said), f"the disk was never full at {wanted}"
    assert outputs(config_file, kept / "small") == calm


def test_a_read_only_folder_is_found_by_check(tmp_path: Path, tiny_model_dir: Path) -> None:
    disk = tmp_path / "disk"
    config_file = write_config(tmp_path / "c", tiny_model_dir, run_dir=str(disk / "runs"))
    script = 'mount -o remount,ro "$DISK"; "$PYTHON" -m selfreward.cli check "$1"; echo "code $?"'
    done = on_small_disk(disk, script, str(config_file))
    assert "code 2" in done.stdout
    assert re.search(r"^error: run_dir='.*/runs': nothing can be written into '.*/disk'; set another run_dir", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_file_where_runs_are_kept_is_found_by_check(
    tmp_path: Path, tiny_model_dir: Path, command: Callable[..., Said]
) -> None:
    config_file = write_config(tmp_path / "c", tiny_model_dir, run_dir=str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    for name in ("check", "run"):
        said = command(name, str(config_file))
        assert said[0] == 2
        assert re.fullmatch(r"error: run_dir='.*/file': '.*/file' is no folder; set another run_dir or name\n", said[2]), said


# --- damage -----------------------------------------------------------------------------------------------------------------


def test_damage_is_named_and_the_way_out_leads_to_the_same_end(
    tmp_path: Path, tiny_model_dir: Path, command: Callable[..., Said], calm: dict[str, Any]
) -> None:
    config_file = write_config(tmp_path / "c", tiny_model_dir)
    root = tmp_path / "c" / "runs" / "small"
    assert command("stage", str(config_file), "round-1/pairs")[0] == 0
    weights = root / "m1" / "checkpoint" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    said = command("run", str(config_file))
    assert is_one_clear_line(said), said
    assert "stage 'm1' is finished, but in " in said[2]
    assert "checkpoint/model.safetensors is damaged or was changed: nothing was made from it" in said[2]
    for record in ("m1", "round-1/samples"):  # the way out that the line names; and a checkpoint or rows without a record
        (root / record / "record.json").unlink()
    assert command("run", str(config_file))[0] == 0
    assert outputs(config_file) == calm


def test_a_start_model_that_vanishes_between_two_stages(
    tmp_path: Path, tiny_model_dir: Path, command: Callable[..., Said], calm: dict[str, Any]
) -> None:
    folder = tmp_path / "start model"
    shutil.copytree(tiny_model_dir, folder)
    config_file = write_config(tmp_path / "c", tiny_model_dir, model={"path": str(folder)})
    assert command("stage", str(config_file), "sft")[0] == 0
    folder.rename(tmp_path / "moved")
    code, _, err = command("run", str(config_file))
    assert code == 2
    assert err.startswith(f"error: model.path={str(folder)!r} is no folder")
    (tmp_path / "moved").rename(folder)
    assert command("run", str(config_file))[0] == 0
    assert outputs(config_file) == calm


# --- endpoints --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EndpointServer]:
    script = ScriptedEngine.open(str(write_script(tmp_path / "script.json")))

    def brain(asked: str, seed: int) -> str:
        (reply,) = script.generate([Request("x", (Message("user", asked),), Sampling(10_000), seed)])
        return reply.text

    with serving(brain) as made:
        yield made


ECHO = f"you sent Authorization: Bearer {KEY}"
JSON_ECHO = json.dumps({"oops": KEY}).replace("/", "\\/")
FAULTS: dict[str, tuple[Fault, str]] = {
    "time-out": (Fault(delay=1.2), r"in 3 tries, at last: no whole answer in time \(endpoints\.far\.timeout_s=0\.5\)"),
    "429": (refusal(429, ECHO), r"in 3 tries, at last: status 429: you sent Authorization: Bearer \*\*\*"),
    "500": (refusal(500, ECHO), r"in 3 tries, at last: status 500: .*\*\*\*"),
    "garbage": (Fault(body=f"<html>{ECHO}</html>"), r"in 3 tries, at last: the answer is not JSON: <html>.*\*\*\*</html>"),
    "half": (Fault(cut=True), r"in 3 tries, at last: "),
    "refused": (Fault(401, JSON_ECHO), r"refused request .* with status 401: .*; check the key in the variable"),
    "wait": (
        refusal(429, ECHO, retry_after="900"),
        r"asks to wait 900 s .*max_wait_s=0\.05: raise it, or continue",
    ),
}


def test_an_endpoint_in_trouble_loses_nothing_and_shows_no_key(
    tmp_path: Path, tiny_model_dir: Path, server: EndpointServer, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    far = server.settings(api_key_env="FAR_KEY", send_seed=True, timeout_s=0.5, max_retries=2, max_wait_s=0.05)
    roles = {"judge": {**SMALL["judge"], "model": "endpoint:far"}, "endpoints": {"far": far}}
    engine = {"name": "scripted", "script": str(tmp_path / "script.json"), "threads": 1, "device": "cpu", "chunk_size": 4}
    well, ill = (write_config(tmp_path / name, tiny_model_dir, engine=engine, **roles) for name in ("well", "ill"))
    assert command("run", str(well))[0] == 0
    num_calls = len(server.calls)
    server.calls.clear()

    everything = ""
    assert command("stage", str(ill), "round-1/samples")[0] == 0
    answered = 0
    for fault, line in FAULTS.values():
        server.faults = [None] * 4 + [fault] * 200  # one more part, then trouble
        said = command("run", str(ill))
        assert is_one_clear_line(said), said
        assert re.search(line, said[2]), said[2]
        everything += said[1] + said[2]
        answered += 4
    server.faults = [refusal(500, ECHO), Fault(body=ECHO), None, refusal(429, ECHO)]
    done = command("run", str(ill))
    assert done[0] == 0, done
    assert outputs(ill) == outputs(well), "no trouble left a trace in what was made"
    everything += done[1] + done[2]

    assert KEY not in everything
    found = [path for path in tmp_path.rglob("*") if path.is_file() and b"0123456789" in path.read_bytes()]
    found = [path for path in found if KEY.encode() in path.read_bytes() or b"secret+0123456789" in path.read_bytes()]
    assert not found
    assert num_calls > answered
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}, "and yet it was sent"
    assert KEY not in " ".join(Path(f"/proc/{os.getpid()}/cmdline").read_text().split("\0"))


def test_a_reply_that_repeats_the_key_is_stored_without_it(
    tmp_path: Path, tiny_model_dir: Path, server: EndpointServer, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    answer = server.brain
    server.brain = lambda asked, seed: f"{answer(asked, seed)} {ECHO}"
    far = server.settings(api_key_env="FAR_KEY", send_seed=True)
    roles = {"judge": {**SMALL["judge"], "model": "endpoint:far"}, "propose": {**SMALL["propose"], "model": "endpoint:far"}}
    config_file = write_config(tmp_path / "c", tiny_model_dir, endpoints={"far": far}, **roles)
    command("run", str(config_file))
    root = tmp_path / "c" / "runs" / "small"
    assert (root / "round-1" / "judgements").is_dir() or (root / "round-1" / "prompts").is_dir()
    texts = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in texts if KEY.encode() in path.read_bytes()]
    # Parquet is compressed: look into the rows too.
    import pyarrow.parquet as pq

    rows = [str(pq.read_table(path).to_pylist()) for path in texts if path.suffix == ".parquet"]
    assert not [row for row in rows if KEY in row]
    assert [row for row in rows if "Authorization: Bearer ***" in row], "the reply itself was kept"


# --- places and clocks --------------------------------------------------------------------------------------------------------


def test_spaces_unicode_and_relative_paths_change_nothing(
    tmp_path: Path, tiny_model_dir: Path, command: Callable[..., Said], calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "ein Ordner mit Ümläuten, 数据 & 'quotes' 🌊"
    config_file = write_config(home, tiny_model_dir)
    shutil.copytree(tiny_model_dir, home / "das Modell ☃")
    tree = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    tree |= {"run_dir": "meine Läufe", "name": "a-run_1.2"}
    tree["model"]["path"], tree["seed"]["path"], tree["engine"]["script"] = "das Modell ☃", "seeds", "script.json"
    config_file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    monkeypatch.chdir(home)
    assert command("stage", "config.yaml", "round-1/samples")[0] == 0

    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    said = command("run", str(config_file))
    assert (said[0], "is not" in said[2] or "is no " in said[2] or "no script" in said[2]) == (2, True), said
    assert not list(other.iterdir()), "nothing is begun in a folder that lacks what the config names"

    # From another folder with whole paths, and with the run's folder moved: what is finished counts by its content.
    moved = tmp_path / "moved"
    (home / "meine Läufe").rename(moved)
    changes = [f"run_dir={moved}", f"model.path={json.dumps(str(home / 'das Modell ☃'), ensure_ascii=False)}"]
    changes += [f"seed.path={json.dumps(str(home / 'seeds'), ensure_ascii=False)}"]
    changes += [f"engine.script={json.dumps(str(home / 'script.json'), ensure_ascii=False)}"]
    done = command("run", str(config_file), *changes)
    assert done[0] == 0, done
    assert re.search(r"stages: \d+ done, [5-9]\d* finished before and reused", done[2])
    made = outputs(config_file, moved / "a-run_1.2")
    assert made == calm


def test_a_name_that_cannot_be_a_folder_is_one_line(tmp_path: Path, tiny_model_dir: Path, command: Callable[..., Said]) -> None:
    config_file = write_config(tmp_path / "c", tiny_model_dir)
    for name, wanted in (("x" * 300, "too long"), ("a b", "name="), ("../x", "name="), ("läufe", "name=")):
        code, _, err = command("check", str(config_file), f"name={name}")
        assert code in (1, 2)
        assert wanted in err
        assert err.count("error:") == 1
        assert "Traceback" not in err


def test_clocks_that_jump_decide_nothing(
    tmp_path: Path, tiny_model_dir: Path, command: Callable[..., Said], calm: dict[str, Any]
) -> None:
    config_file = write_config(tmp_path / "c", tiny_model_dir)
    root = tmp_path / "c" / "runs" / "small"
    assert command("stage", str(config_file), "round-1/samples")[0] == 0
    for place, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, times=(4e9, 4e9) if place % 2 else (1e6, 1e6))  # the years 2096 and 1970
    done = command("run", str(config_file))
    assert done[0] == 0, done
    assert re.search(r"stages: \d+ done, [5-9]\d* finished before and reused", done[2]), "nothing finished is done again"
    assert outputs(config_file) == calm
    assert all(read_json(root / key / "record.json")["seconds"] >= 0 for key in calm)
