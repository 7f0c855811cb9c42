"""Keys that stay outside, weights that run no code, and names that stay inside the run's folder."""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_disk import SRC
from stage_bench import Stages, model

from selfreward import redaction
from selfreward.artifacts import Run, RunDir, Stage
from selfreward.chat import encode_prompt
from selfreward.config import Config, load_config, parse_config
from selfreward.engines.loading import folder_problem, load_model
from selfreward.environment import open_log
from selfreward.errors import ConfigError, ModelError, SelfRewardError, UsageError
from selfreward.preflight import check_config
from selfreward.redaction import HIDDEN, hide, holds_secret, keep_secret
from selfreward.rubrics import load_rubric
from selfreward.stages import propose, sample, seed
from selfreward.stopping import Stop
from selfreward.types import Counts, Message

KEY = "sk-unit/very+secret=0123456789"


@pytest.fixture
def known_key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(redaction, "_SECRETS", {})
    keep_secret(KEY)
    return KEY


# --- secrets ------------------------------------------------------------------------------------------------------------


def test_a_key_is_hidden_in_every_way_of_writing_it(known_key: str) -> None:
    for text in (KEY, json.dumps({"key": KEY}), json.dumps(KEY).replace("/", "\\/"), "sk-unit%2Fvery%2Bsecret%3D0123456789"):
        assert holds_secret(text)
        assert "0123456789" not in hide(text)
        assert HIDDEN in hide(text)
    assert hide("nothing here") == "nothing here"


@given(key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), around=st.text(max_size=20))
def test_no_text_keeps_a_key(key: str, around: str) -> None:
    before = dict(redaction._SECRETS)
    try:
        keep_secret(key)
        assert key not in hide(f"{around}{key}{around}").replace(HIDDEN, "\n")
        assert json.dumps(key)[1:-1] not in hide(json.dumps(around + key)).replace(HIDDEN, "\n")
    finally:
        redaction._SECRETS.clear()
        redaction._SECRETS.update(before)


def test_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_SECRETS", {})
    keep_secret("none")
    assert hide("none of them") == "none of them"


def test_the_log_holds_no_key(known_key: str, tmp_path: Path) -> None:
    logger, _ = open_log(tmp_path / "run.log")
    logger.error(f"refused {KEY}", extra={"data": {"header": f"Bearer {KEY}"}})
    logger.error("with a traceback", exc_info=ValueError(KEY))
    for handler in list(logger.handlers):
        handler.close()
    text = (tmp_path / "run.log").read_text()
    assert KEY not in text
    assert text.count(HIDDEN) >= 3
    assert [json.loads(line)["level"] for line in text.splitlines()] == ["error", "error"]
    assert isinstance(logger, logging.Logger)


def test_a_key_in_the_settings_is_refused_before_it_is_stored(known_key: str, settings: dict[str, Any]) -> None:
    config = Stages.config({**settings, "run_dir": f"{settings['run_dir']}/{KEY}"})
    with pytest.raises(ConfigError, match="the value of an API key stands in the settings") as caught:
        Run.open(config)
    assert KEY not in str(caught.value)
    written = [path for path in Path(settings["run_dir"]).rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


CRASH = """
import sys
from selfreward import cli, preflight
from selfreward.redaction import keep_secret

def crash(config):
    keep_secret({key!r})
    raise LookupError("defect with " + {key!r})

preflight.check_config = crash
cli.main()
"""


def test_an_unexpected_error_leaves_a_file_without_the_key(tmp_path: Path) -> None:
    done = crash(tmp_path, {"TMPDIR": str(tmp_path)})
    (report,) = tmp_path.glob("selfreward-error-*.txt")
    assert done.returncode == 1
    assert done.stderr == f"unexpected error: LookupError: defect with ***\nplease report it with {report}\n"
    assert "defect with ***" in report.read_text()
    assert KEY not in report.read_text()


def test_an_unexpected_error_without_room_for_its_file_is_still_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = "import tempfile; tempfile.tempdir = sys.argv.pop(1)\n"
    done = crash(tmp_path, {}, code, str(tmp_path / "file"))
    assert done.stderr.startswith("unexpected error: LookupError: defect with ***\nplease report it; its details could not")
    assert "Traceback" not in done.stderr


def crash(tmp_path: Path, environment: dict[str, str], code: str = "", *arguments: str) -> Any:
    lines = CRASH.format(key=KEY).replace("import sys\n", f"import sys\n{code}")
    return subprocess.run(
        [sys.executable, "-c", lines, *arguments, "check", str(SRC.parent / "configs" / "demo.yaml")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "200", **environment},
    )  # fmt: skip


# --- no code from files -----------------------------------------------------------------------------------------------------


class Canary:
    """Leaves a file when somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Where the canary would sing; `canary.pkl` holds it."""
    (tmp_path / "canary.pkl").write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    pickle.load(io.BytesIO((tmp_path / "canary.pkl").read_bytes()))
    assert (tmp_path / "sung").exists(), "the canary sings"
    (tmp_path / "sung").unlink()
    return tmp_path / "sung"


def trap(folder: Path, tiny_model_dir: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(tiny_model_dir, folder)
    weights = folder / "model.safetensors"
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin", "x": "model.safetensors"}}
    if kind in ("bin", "pt"):
        weights.unlink()
        shutil.copy(tmp_path / "canary.pkl", folder / ("pytorch_model.bin" if kind == "bin" else "model.pt"))
    elif kind.startswith("index"):
        weights.rename(folder / "model-00001-of-00001.safetensors")
        shutil.copy(tmp_path / "canary.pkl", folder / "pytorch_model.bin")
        outside = os.path.relpath(tmp_path / "canary.pkl", folder)
        index["weight_map"] = {"lm_head.weight": {"index": "pytorch_model.bin", "index outside": outside}[kind]}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
        shutil.copy(tmp_path / "canary.pkl", folder / "adapter_model.bin")


REASONS = {
    "bin": r"holds no \.safetensors weights; other formats can run code when they are loaded and are refused",
    "pt": r"holds no \.safetensors weights",
    "index": r"names 'pytorch_model\.bin': only \.safetensors files of the folder itself are loaded",
    "index outside": r"names '.*canary\.pkl': only \.safetensors files",
    "adapter": r"is an adapter, not a whole model",
}


@pytest.mark.parametrize("kind", REASONS)
def test_weights_that_could_run_code_are_refused_with_the_reason(
    kind: str, canary: Path, tmp_path: Path, tiny_model_dir: Path, make_config: Any
) -> None:
    folder = tmp_path / "model folder"
    trap(folder, tiny_model_dir, tmp_path, kind)
    config = make_config(model={"path": str(folder)})
    with pytest.raises(ConfigError, match=REASONS[kind]):
        check_config(config)
    with pytest.raises(ModelError, match=REASONS[kind]):
        load_model(folder, config, "cpu")
    assert not canary.exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(
    canary: Path, tmp_path: Path, tiny_model_dir: Path, make_config: Any
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(tiny_model_dir, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        shutil.copy(tmp_path / "canary.pkl", folder / name)
    loaded = load_model(folder, make_config(model={"path": str(folder)}), "cpu")
    assert isinstance(loaded.lm_head.weight, torch.Tensor)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ('{"weight_map": {"a": "gone.safetensors"}}', "lacks gone.safetensors, one of 1 files of weights"),
        ('{"weight_map": 3}', "has an index of weights that cannot be read"),
        ("[]", "has an index of weights that cannot be read"),
        ("{", "has an index of weights that cannot be read"),
        ('{"weight_map": {"a": "../m.safetensors"}}', "only .safetensors files of the folder itself"),
        ('{"weight_map": {"a": "/m.safetensors"}}', "only .safetensors files of the folder itself"),
    ],
)
def test_an_index_of_weights_is_looked_at(tmp_path: Path, index: str, problem: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert folder_problem(tmp_path) is None
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert problem in (folder_problem(tmp_path) or "")


@pytest.mark.parametrize("line", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]"])
def test_yaml_makes_no_objects(tmp_path: Path, line: str) -> None:
    made = tmp_path / "made"
    (tmp_path / "evil.yaml").write_text(f"name: {line.format(made)}\n")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "evil.yaml")
    with pytest.raises(ConfigError):
        load_config(SRC.parent / "configs" / "demo.yaml", [f"name={line.format(made)}"])
    (tmp_path / "evil.md").write_text(f"---\nname: {line.format(made)}\nkind: pointwise\n---\n{{{{ instruction }}}}\n")
    with pytest.raises(ConfigError):
        load_rubric(str(tmp_path / "evil.md"), "pointwise")
    assert not made.exists()


def test_a_chat_template_runs_in_a_sandbox(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(tiny_tokenizer)
    made = tmp_path / "made"
    tokenizer.chat_template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(made) + "') }}{{ messages }}"
    with pytest.raises(SelfRewardError):
        encode_prompt(tokenizer, (Message("user", "hello"),))
    assert not made.exists()


# --- names ------------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../up",
    "/abs/olute",
    "a/../../b",
    "nul\0byte",
    "CON",
    "~root",
    "..",
    ".",
    "$HOME",
    "a\nb",
    "%2e%2e",
    "-rf",
    "\\x",
]
names = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))


@given(name=names)
def test_a_runs_name_is_refused_or_a_folder_of_run_dir(name: str) -> None:
    try:
        config = parse_config({"name": name, "run_dir": "/runs"})
    except ConfigError:
        return
    root = Path(os.path.normpath(Path(config.run_dir) / config.name))
    assert root.parent == Path("/runs")
    assert "\n" not in str(root)


@given(key=names)
def test_a_stages_key_is_refused_or_lies_in_the_run(key: str) -> None:
    run = Run.__new__(Run)  # a key is looked at before anything else
    run.config, run.dir, run.stop = Config(name="x"), RunDir("/runs/x"), Stop()

    def inside(_: Stage) -> Counts:
        raise AssertionError("the folder is not there")

    try:
        run.stage(key, {"never": object()}, {}, inside)
    except UsageError:
        return
    except TypeError:  # the key passed; the sections, looked at next, cannot be stored
        assert Path(os.path.normpath(Path("/runs/x") / key)).is_relative_to("/runs/x")


def files_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_texts_ids_and_names_from_data_make_no_file(stages: Stages, settings: dict[str, Any], tmp_path: Path) -> None:
    def one_round(run: Run) -> Run:
        data, policy = seed.run(run), model(run)
        prompts = propose.run(run, 1, policy, data, [])
        sample.run(run, 1, policy, prompts)
        return run

    calm = one_round(stages.run(name="calm"))
    folder = Path(settings["seed"]["path"])
    rows = [{"prompt": f"{text} how does it work {place}", "response": text or "x"} for place, text in enumerate(HOSTILE)]
    rows += [
        {"id": text, "category": text, "prompt": f"part {place} of it", "response": "x"} for place, text in enumerate(HOSTILE)
    ]
    (folder / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rubric = tmp_path / "evil.md"
    shipped = (SRC / "selfreward" / "rubrics" / "additive.md").read_text()
    rubric.write_text(shipped.replace("name: additive", "name: ../../../evil"))
    before = files_of(tmp_path)
    try:
        hostile = one_round(stages.run(name="hostile", judge={"rubric": str(rubric)}))
    except SelfRewardError as error:
        pytest.fail(f"the data is odd, not wrong: {error}")
    assert files_of(hostile.dir.root) == files_of(calm.dir.root)
    assert {path for path in files_of(tmp_path) - before if not path.startswith("runs/hostile/")} == set()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\0b", "..", ""])
def test_names_of_rubrics_are_names_or_files_that_are_read(name: str) -> None:
    with pytest.raises(ConfigError):
        load_rubric(name, "pointwise")


def test_a_folder_with_a_nul_character_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SelfRewardError, match="NUL character"):
        Run.open(Stages.config({**settings, "run_dir": "a\0b"}))
