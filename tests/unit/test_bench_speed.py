"""bench/speed: token counts are exact, operations counted as by hand, both sides make the same, a quick run keeps its shape."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from speed.cli import main  # noqa: E402
from speed.contest import BenchError, Made, Ours, alternate, check_tokens, rates  # noqa: E402
from speed.models import RANDOM, load_model, load_tokenizer, shape_of, write_model  # noqa: E402
from speed.names import DEMO, MODELS  # noqa: E402
from speed.peers import BatchSetting, Generate, GenerateBatch, GenerateSetting, Search  # noqa: E402
from speed.workers import Worker, job  # noqa: E402
from speed.workloads import QUICK, Sizes, Workload, candidates, expected, expected_by_votes, judge  # noqa: E402

from selfreward.chat import encode_prompt  # noqa: E402
from selfreward.engines.hf import HfEngine  # noqa: E402
from selfreward.types import Request, Sampling  # noqa: E402

KEYS = {"workload", "model", "ours", "peer", "peer_name", "ratio"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model."""
    return write_model("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro-world's model with a longer context."""
    return write_model("demo", tmp_path_factory.mktemp("models"))


def workload_of(*wanted: tuple[tuple[int, ...], int]) -> Workload:
    """Requests of (prompt ids, new tokens); their texts do not matter."""
    requests = tuple(Request(f"r{n}", "x", Sampling(max(1, new)), n) for n, (_, new) in enumerate(wanted))
    requests = tuple(
        replace(request, choices=("a",) if new == 0 else ()) for request, (_, new) in zip(requests, wanted, strict=True)
    )
    return Workload("hand", requests, tuple(ids for ids, _ in wanted), len(wanted))


# --- models and workloads


@pytest.mark.parametrize(("name", "millions"), [("15M", 15), ("90M", 90)])
def test_the_random_models_have_the_size_that_they_are_called_by(name: str, millions: int) -> None:
    assert {DEMO, *RANDOM} == set(MODELS)
    assert RANDOM[name].num_weights / 1e6 == pytest.approx(millions, rel=0.05)


def test_a_models_shape_counts_its_weights(tiny: Path) -> None:
    model = load_model(tiny)
    in_matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert shape_of(model) == RANDOM["tiny"]
    assert shape_of(model).num_weights == in_matrices


def test_models_are_the_same_each_time(tiny: Path, tmp_path: Path) -> None:
    again = write_model("tiny", tmp_path)
    assert (again / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


def test_the_workloads_have_the_token_counts_of_the_task(demo: Path) -> None:
    tokenizer = load_tokenizer(demo)
    judged = judge(tokenizer, Sizes())
    assert (len(judged.requests), judged.num_items, judged.num_new) == (192, 64, 192 * 48)
    assert len(set(judged.prompt_ids)) == 64
    assert len({ids[:300] for ids in judged.prompt_ids}) == 1
    assert {len(ids) for ids in judged.prompt_ids} <= set(range(360, 401))
    written = candidates(tokenizer, Sizes())
    assert (len(written.requests), len(set(written.prompt_ids))) == (1024, 256)
    assert {len(ids) for ids in written.prompt_ids} <= set(range(30, 201))
    assert set(written.asked) == set(range(8, 65))
    assert written.num_new == sum(request.sampling.max_tokens for request in written.requests)
    weighed = expected(tokenizer, Sizes(num_weighed=10))
    assert (len(weighed.requests), weighed.num_new, {len(request.choices) for request in weighed.requests}) == (10, 0, {6})
    voted = expected_by_votes(tokenizer, Sizes(num_weighed=10), 3)
    assert {request.prompt for request in voted.requests} == {request.prompt for request in weighed.requests}
    assert voted.num_new == 10 * 3 * 48


def test_what_the_engine_reads_is_what_the_peers_are_given(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    for workload in (judge(tokenizer, QUICK), candidates(tokenizer, QUICK), expected(tokenizer, QUICK)):
        for request, ids in zip(workload.requests, workload.prompt_ids, strict=True):
            assert encode_prompt(tokenizer, str(request.prompt) + request.reply_prefix) == list(ids)
            assert tokenizer.unk_token_id not in ids
            assert not set(ids) & set(tokenizer.all_special_ids)


def test_a_share_has_fewer_items_of_the_same_lengths() -> None:
    quarter = Sizes().share(0.25)
    assert (quarter.num_judged, quarter.num_prompts, quarter.num_weighed) == (16, 64, 250)
    assert (quarter.rubric, quarter.own, quarter.vote, quarter.new) == (300, (60, 100), 48, (8, 64))


# --- the contestants


def test_everyone_makes_the_tokens_asked_for(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    pad = tokenizer.pad_token_id
    for make in (judge, candidates):
        workload = make(tokenizer, QUICK)
        with HfEngine(load_model(tiny), tokenizer, 4) as engine:
            contestants = [
                Ours(engine, workload, "ours", ""),
                Generate(load_model(tiny), pad, workload, GenerateSetting(4, "new")),
                Generate(load_model(tiny), pad, workload, GenerateSetting(3, "prompt", "static")),
                GenerateBatch(load_model(tiny), pad, workload, BatchSetting(2, 64, 16)),
                GenerateBatch(load_model(tiny), pad, workload, BatchSetting(2, 64, 16, forks=True)),
            ]
            for contestant in contestants:
                made = contestant.run()
                check_tokens(workload, contestant.name, [made])
                assert made.num_tokens == workload.asked
                assert made.seconds > 0


def test_generate_goes_on_past_the_end_token(demo: Path) -> None:
    tokenizer, model = load_tokenizer(demo), load_model(demo)
    sizes = replace(QUICK, num_prompts=4, num_candidates=8, new=(40, 40))
    workload = candidates(tokenizer, sizes)
    outputs: list[torch.Tensor] = []
    generate = model.generate

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        outputs.append(generate(*args, **kwargs))
        return outputs[-1]

    model.generate = watched
    made = Generate(model, tokenizer.pad_token_id, workload, GenerateSetting(32)).run()
    assert made.num_tokens == workload.asked
    (out_BT,) = outputs
    new_BT = out_BT[:, -40:]
    ended = [row for row in new_BT.tolist() if tokenizer.eos_token_id in row[:-1]]
    assert ended, "no reply met an end token: the test shows nothing"
    assert any(set(row[row.index(tokenizer.eos_token_id) + 1 :]) != {tokenizer.pad_token_id} for row in ended)


def test_the_surplus_of_a_ragged_batch_is_told_and_not_counted(tiny: Path) -> None:
    workload = workload_of(((5, 6), 4), ((7, 8), 1), ((9, 9), 2))
    tokenizer = load_tokenizer(tiny)
    peer = Generate(load_model(tiny), tokenizer.pad_token_id, workload, GenerateSetting(3, "new"))
    assert "5 surplus tokens cut" in peer.setting
    assert peer.run().num_tokens == (4, 1, 2)


def test_wrong_token_counts_are_an_error() -> None:
    workload = workload_of(((5,), 3), ((6,), 2))
    check_tokens(workload, "x", [Made(1.0, (3, 2))])
    with pytest.raises(BenchError, match=r"x made 4 new tokens, 5 were asked for; 1 requests differ, the first: r1 1 of 2"):
        check_tokens(workload, "x", [Made(1.0, (3, 2)), Made(1.0, (3, 1))])


def test_a_search_takes_the_better_of_two_tries_and_asks_for_no_setting_again() -> None:
    speeds = {"a": [1.0, 2.5], "b": [3.0, 0.5], "c": [2.0, 2.9]}
    told: list[str] = []
    search = Search(lambda setting: speeds[setting].pop(0), told.append)
    assert search.best(["a", "b"]) == "b"
    assert search.best(["b", "c"]) == "b"
    assert told == ["tuning: a: 2 tokens/s", "tuning: b: 3 tokens/s", "tuning: c: 3 tokens/s"]


@pytest.mark.parametrize(("fastest", "tried"), [(1, [4, 8, 2, 1]), (4, [4, 8, 2]), (8, [4, 8, 16]), (64, [4, 8, 16, 20])])
def test_a_search_goes_on_beyond_the_ends_of_its_grid(fastest: int, tried: list[int]) -> None:
    sizes: list[int] = []

    def rate(setting: GenerateSetting) -> float:
        if setting.batch_size not in sizes:
            sizes.append(setting.batch_size)
        return -abs(setting.batch_size - fastest)

    best = Search(rate, lambda text: None).best_size([GenerateSetting(4), GenerateSetting(8)], "batch_size", 20)
    assert sizes == tried
    assert best.batch_size == min(fastest, 20)


class Slow:
    """Takes the times that it is told."""

    setting = ""

    def __init__(self, name: str, seconds: list[float], order: list[str]) -> None:
        self.name, self.seconds, self.order = name, seconds, order

    def run(self) -> Made:
        self.order.append(self.name)
        return Made(self.seconds.pop(0), (4,))

    def close(self) -> None:
        pass


def test_rounds_take_turns_and_rates_are_medians() -> None:
    order: list[str] = []
    runs = alternate([Slow("a", [1, 4, 2], order), Slow("b", [8, 8, 8], order)], 3, lambda text: None)
    assert order == ["a", "b"] * 3
    found = rates(4, runs["a"])
    assert (found.median, found.least, found.most) == (2, 1, 4)


# --- a peer in another interpreter

ANSWERS = """
import json, sys
work = json.loads(sys.stdin.readline())
print("a library says hello")
print("BENCH " + json.dumps({"setting": f"{work['threads']} threads"}), flush=True)
for line in sys.stdin:
    tokens = [request["max_tokens"] for request in work["requests"]]
    print("BENCH " + json.dumps({"seconds": 2.5, "num_tokens": tokens}), flush=True)
"""


def test_a_worker_is_asked_over_pipes(tmp_path: Path, tiny: Path) -> None:
    workload = judge(load_tokenizer(tiny), QUICK)
    worker = Worker("other", (sys.executable, "-c", ANSWERS), job(tiny, workload, 2))
    assert worker.setting == "2 threads"
    assert [worker.run(), worker.run()] == [Made(2.5, workload.asked)] * 2
    worker.close()


TICKS = """
import pathlib, sys, threading, time

def tick():
    while True:
        with pathlib.Path(sys.argv[1]).open("a") as file:
            file.write(".")
        time.sleep(0.005)

pathlib.Path(sys.argv[1]).touch()
threading.Thread(target=tick, daemon=True).start()
"""


def test_a_worker_stands_still_outside_its_turns(tmp_path: Path, tiny: Path) -> None:
    work = job(tiny, judge(load_tokenizer(tiny), QUICK), 2)
    ticks = tmp_path / "ticks"
    program = TICKS + ANSWERS.replace("sys.stdin:", "sys.stdin:\n    time.sleep(0.3)")
    worker = Worker("other", (sys.executable, "-c", program, str(ticks)), work)

    def size_after(seconds: float) -> int:
        time.sleep(seconds)
        return ticks.stat().st_size

    before = size_after(0.05)
    assert size_after(0.2) == before
    worker.run()
    after = size_after(0.05)
    assert after > before
    assert size_after(0.2) == after
    worker.close()


def test_a_worker_is_not_waited_for_when_its_turn_is_broken_off(tiny: Path) -> None:
    work = job(tiny, judge(load_tokenizer(tiny), QUICK), 2)
    program = ANSWERS.replace("sys.stdin:", "sys.stdin:\n    import time\n    time.sleep(300)")
    worker = Worker("other", (sys.executable, "-c", program), work)

    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, break_off)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            worker.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 5


def test_a_worker_that_ends_is_an_error(tiny: Path) -> None:
    workload = judge(load_tokenizer(tiny), QUICK)
    with pytest.raises(BenchError, match=r"other: its program ended with exit code 3"):
        Worker("other", (sys.executable, "-c", "raise SystemExit(3)"), job(tiny, workload, 2))


# --- the program

QUICK_OPTIONS = ("--quick", "--threads", "1", "--repeats", "2", "--models", "tiny")


@pytest.fixture
def _as_before() -> Iterator[None]:
    """What a run changes in this process is put back."""
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.mark.usefixtures("_as_before")
def test_a_quick_run_prints_one_table_and_keeps_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    other = {"workload": "other", "model": None, "ours": 1.0, "peer": None, "peer_name": None, "ratio": None}
    results.write_text(json.dumps({"rows": [other]}))
    assert main([*QUICK_OPTIONS, "--results", str(results)]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert rows[0] == other
    assert [(row["workload"], row["model"], row["peer_name"]) for row in rows[1:]] == [
        ("judge", "tiny", "HF generate"),
        ("judge", "tiny", "HF generate_batch"),
        ("candidates", "tiny", "HF generate"),
        ("candidates", "tiny", "HF generate_batch"),
        ("expected scores", "tiny", "ours, 3 votes"),
        ("expected scores", "tiny", "ours, 1 vote"),
        ("expected scores", "tiny", "generate, 3 votes"),
        ("expected scores", "tiny", "gen._batch, 3 v."),
    ]
    for row in rows[1:]:
        assert set(row) == KEYS
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "18 new tokens, batch 256; HF generate" in " ".join(shown.split())


@pytest.mark.usefixtures("_as_before")
def test_scores_are_measured_beside_whom_one_names(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    for peers in ("own", "generate"):
        assert main([*QUICK_OPTIONS, "--only", "expected", "--peers", peers, "--results", str(results)]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert [row["peer_name"] for row in rows] == ["ours, 3 votes", "ours, 1 vote", "generate, 3 votes"]


def test_the_program_runs_and_a_quick_run_leaves_the_kept_results_alone() -> None:
    before = (BENCH / "results.json").read_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path and path != str(BENCH))}
    command = [sys.executable, str(BENCH / "speed"), *QUICK_OPTIONS, "--only", "judge", "--peers", "generate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("workload")
    assert (BENCH / "results.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("_as_before")
def test_scaling_prints_its_sizes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path and path != str(BENCH)))
    assert main([*QUICK_OPTIONS, "--scaling"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["4", "12"], ["8", "24"], ["16", "48"]]
    assert "seconds = " in lines[-1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--models", "none"], "'none' is none of demo"),
        (["--peers", "generate,generate"], "names one of them twice"),
        (["--share", "0"], "--share 0.0 must be above 0"),
        (["--repeats", "0"], "must be at least 1"),
        (["--peers", "vllm"], "--peers vllm needs --vllm-python"),
        (["--peers", "own", "--only", "judge,expected"], "--peers own needs --only expected"),
    ],
)
def test_wrong_options_are_refused(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err
