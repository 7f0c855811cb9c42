"""`selfreward check` on bad configs: one exact line for each problem, the exit code, nothing on standard output."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_files import SYNTAX, VALUES
from bad_settings import SETTINGS
from check_bench import Said, Shell

from selfreward.config.rules import RULES

CASES = {**SYNTAX, **VALUES, **SETTINGS}
HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "openai")
REPO = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def lines(text: str) -> str:
    return "".join(f"error: {line}\n" for line in text.splitlines())


def test_no_case_hides_another() -> None:
    assert len(CASES) == len(SYNTAX) + len(VALUES) + len(SETTINGS) >= 100


@pytest.mark.parametrize("name", CASES)
def test_a_bad_config_is_named(shell: Shell, name: str) -> None:
    content, words, says = CASES[name]
    shell.write(content)
    assert shell.run("check", "c.yaml", *words) == Said(2, "", lines(says))
    assert [path.name for path in shell.folder.iterdir()] == ["c.yaml"], "a check writes nothing"


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_every_rule_is_broken_by_some_config(rule: str) -> None:
    assert any(f"(rule {rule})" in says for _, _, says in SETTINGS.values())


@pytest.mark.parametrize("command", [["run", "c.yaml"], ["stage", "c.yaml", "seed"], ["seed", "c.yaml"], ["check", "c.yaml"]])
def test_every_command_finds_the_same(shell: Shell, command: list[str]) -> None:
    shell.write("name: a\ndpo: {bta: 1}\n")
    assert shell.run(*command).err == "error: c.yaml line 2: unknown setting 'dpo.bta'; did you mean 'beta'?\n"
    shell.write("name: a\nseed: {sources: [{path: nowhere}]}\nrun_dir: c.yaml\n")
    said = shell.run(*command)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 2)
    assert "error: seed.sources[0]: 'nowhere' is no file" in said.err
    assert "error: run_dir='c.yaml': " in said.err


def test_a_folder_and_a_missing_file(shell: Shell) -> None:
    (shell.folder / "c.yaml").mkdir()
    assert shell.run("check", "c.yaml").err == "error: config file 'c.yaml' is a folder; give the YAML file in it\n"
    assert shell.run("check", "d.yaml").err == "error: config file 'd.yaml' does not exist\n"
    os.mkfifo(shell.folder / "pipe")
    assert shell.run("check", "pipe").err == "error: config file 'pipe' is no plain file\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written(shell: Shell) -> None:
    shell.write("name: a\n")
    (shell.folder / "runs").mkdir(mode=0o500)
    assert "nothing can be written into" in shell.run("check", "c.yaml").err
    (shell.folder / "c.yaml").chmod(0)
    assert shell.run("check", "c.yaml").err == "error: config file 'c.yaml' cannot be read: Permission denied\n"


@pytest.mark.parametrize("words", [["demo"], ["judge", "c.yaml", "--model", "scripted:random"]])
def test_commands_without_a_config_blame_the_command_line(shell: Shell, words: list[str]) -> None:
    said = shell.run(*words, "dpo.learing_rate=1")
    assert said == Said(2, "", "error: command line: unknown setting 'dpo.learing_rate'; did you mean 'learning_rate'?\n")


def test_a_seed_file_that_cannot_be_read_is_no_fault_of_the_config(shell: Shell) -> None:
    shell.write("name: a\nseed: {sources: [{path: d.csv}]}\n")
    shell.write("question,answer\nwhy?,because\n", "d.csv")
    said = shell.run("check", "c.yaml")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(
        "error: seed.sources[0]: d.csv has an unknown format: its first rows have the fields ['answer', 'question']; the "
        "nearest format is completion, which lacks 'prompt' (rename 'question'?) and 'completion' or 'response' "
    )
    shell.write("name: a\nseed: {sources: [{path: d.csv}]}\nmodel: {path: nowhere}\n")
    assert shell.run("check", "c.yaml").code == 2, "a setting is wrong as well"


@pytest.mark.parametrize("name", ["section twice", "alias bomb", "shell typo", "votes-suffice", "model missing"])
def test_the_program_says_it_too(tmp_path: Path, name: str) -> None:
    content, words, says = CASES[name]
    (tmp_path / "c.yaml").write_text(str(content))
    done = selfreward("check", "c.yaml", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", lines(says))


@pytest.mark.parametrize("preset", sorted(path.stem for path in (REPO / "configs").glob("*.yaml")))
def test_presets_are_valid_where_their_files_are(shell: Shell, preset: str) -> None:
    """The files that a preset asks people to put there are left out by settings."""
    data = {"demo": [], "paper": ["model.path=lab"], "oasst-smoke": ["model.path=lab"]}[preset]
    if preset != "demo":
        reply = '{"message_id": "r", "text": "so", "role": "assistant", "rank": 0, "replies": []}'
        tree = f'{{"message_tree_id": "t", "prompt": {{"message_id": "t", "text": "why", "lang": "en", "replies": [{reply}]}}}}'
        shell.write(tree + "\n", "trees.jsonl")
        data += ["seed.path=trees.jsonl"]
    said = shell.run("check", str(REPO / "configs" / f"{preset}.yaml"), *data)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"config '{preset}' is valid: 2 rounds, mode self-rewarding\n")


def test_words_of_yaml_1_1_mean_what_they_say(shell: Shell) -> None:
    """`no` is a text, or false where true or false is asked for; 1e-4 is a number; a time of day is a text."""
    shell.write("name: no\nnum_rounds: 1\ndpo: {learning_rate: 1e-4, bf16: no, final_learning_rate: 1E-5}\nrun_dir: 1:30\n")
    said = shell.run("check", "c.yaml", "sft.learning_rate=2e-4", "sft.bf16=off")
    assert said.err == ""
    assert said.out.startswith("config 'no' is valid: 1 round, mode self-rewarding\n")


# --- quick and light ----------------------------------------------------------------------------------------------------


def selfreward(*words: str, cwd: Path = REPO) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "selfreward.cli", *words], capture_output=True, text=True, cwd=cwd, check=False, timeout=120
    )


def test_a_check_loads_no_model_library() -> None:
    """They cannot even be found: an import of one would fail, and say so."""
    script = (
        "import sys\n"
        f"HEAVY = {HEAVY}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in HEAVY:\n"
        "            raise ImportError(f'{name} was asked for')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from selfreward import cli\n"
        "sys.argv = ['selfreward', 'check', 'configs/demo.yaml']\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print('LOADED', [name for name in HEAVY if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert "model.path: the embedded model" in done.stdout


def test_a_check_is_quick() -> None:
    """Under 2 s of work; how long a person waits for it on a busy machine is measured by the start-up of the program."""
    checks, starts = ([_seconds(*words) for _ in range(3)] for words in (("check", "configs/demo.yaml"), ("--help",)))
    work, waited, start = min(cpu for cpu, _ in checks), min(wall for _, wall in checks), min(wall for _, wall in starts)
    assert work < 2.0, f"{work:.2f} s of CPU time"
    assert waited < max(2.0, 25 * start), f"check {waited:.2f} s, --help {start:.2f} s"


def _seconds(*words: str) -> tuple[float, float]:
    """(CPU time, time on the clock) of a command."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    assert selfreward(*words).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - begun
