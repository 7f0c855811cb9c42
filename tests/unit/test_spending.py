"""spending.py: what a stage spends adds up over its attempts, and none of it decides anything."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward import spending
from selfreward.artifacts import Run, read_json
from selfreward.config import Config
from selfreward.engines.asking import collect
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import EngineError
from selfreward.spending import COUNTED, SHORTAGES, UNTOLD, PeakMemory, Spending
from selfreward.types import Counts, Generation, Message, Request, Sampling

MIB = 2**20


def requests(prompts, votes=3):
    return [
        Request(f"{index}/{vote}", (Message("user", prompt),), Sampling(20), vote)
        for index, prompt in enumerate(prompts)
        for vote in range(votes)
    ]


class Silent(ScriptedEngine):
    """An engine that tells nothing of what it did, as a server's."""

    def take_usage(self):
        return None


def run_stage(root, work, name="r"):
    with Run.open(Config(name=name, run_dir=str(root))) as run:
        artifact = run.stage("seed", {}, {}, work)
    return read_json(artifact.path / "record.json")


def asking(engine, chunk_size, fail_at=None):
    """A stage that asks three votes on each of four prompts, in chunks."""
    num_chunks = 0

    def work(stage):
        def ask(chunk):
            nonlocal num_chunks
            num_chunks += 1
            if num_chunks == fail_at:
                raise EngineError("switched off")
            return collect(stage, engine, chunk)

        stage.chunks("votes", requests(["a b c", "a b c", "d e", "f"]), chunk_size, ask, Generation)
        return Counts(0, 0)

    return work


def test_a_stage_tells_what_its_engine_did(tmp_path):
    record = run_stage(tmp_path, asking(ScriptedEngine.open("echo"), 12))
    usage = record["usage"]
    assert usage["asked_tokens"] == record["tokens"]["prompt"] == 3 * (3 + 3 + 2 + 1)
    assert usage["read_tokens"] == 3 + 2 + 1, "equal prompts once"
    assert usage["generated_tokens"] == record["tokens"]["generated"] == 27
    assert usage["untold_tokens"] == usage["trained_tokens"] == 0
    assert 0 <= usage["decode_seconds"] <= usage["engine_seconds"] <= record["seconds"]
    assert usage["peak_rss_bytes"] > 10 * MIB
    assert usage["peak_of"] in ("stage", "process")


def test_what_no_engine_told_is_not_zero(tmp_path):
    echo = ScriptedEngine.open("echo")
    usage = run_stage(tmp_path, asking(Silent("echo", lambda asked, seed: asked), 12))["usage"]
    assert usage["asked_tokens"] == usage["untold_tokens"] == 27
    assert (usage["read_tokens"], usage["prefill_seconds"], usage["decode_seconds"]) == (None, None, None)
    assert usage["generated_tokens"] == 27

    def both(stage):
        collect(stage, echo, requests(["a b"], votes=2))
        collect(stage, Silent("echo", lambda asked, seed: asked), requests(["c"], votes=2))
        return Counts(0, 0)

    usage = run_stage(tmp_path, both, "both")["usage"]
    assert (usage["asked_tokens"], usage["read_tokens"], usage["untold_tokens"]) == (6, 2, 2)


class Losing(Silent):
    """A server that charges five tokens for something unreadable before every call's replies."""

    def take_lost_tokens(self):
        return 5


def test_lost_tokens_add_up_and_are_in_no_other_count(tmp_path):
    engine = Losing("echo", lambda asked, seed: asked)
    with pytest.raises(EngineError):
        run_stage(tmp_path, asking(engine, 3, fail_at=3))
    usage = run_stage(tmp_path, asking(engine, 3))["usage"]
    assert (usage["lost_tokens"], usage["asked_tokens"], usage["generated_tokens"]) == (4 * 5, 27, 27)


def test_a_part_of_a_version_that_told_less_is_read():
    spent = Spending()
    mark = spent.mark()
    spent.add_tokens(7, 2)
    spent.add_engine(1.0, None, 7, 2)
    stored = spent.since(mark, 1.0)
    usage = {name: number for name, number in json.loads(stored["usage"]).items() if name != "lost_tokens"}
    again = Spending()
    again.add_stored({**stored, "usage": json.dumps(usage)})
    assert again.record()["asked_tokens"] == 7
    assert again.record()["lost_tokens"] == 0


def test_a_prompt_that_was_refused_as_too_long_was_not_read(tmp_path):
    refused = {"0/1": "too_long", "0/2": "content_filter"}

    class Refusing(Silent):
        def generate(self, requests):
            for reply in super().generate(requests):
                error = refused.get(reply.request_id)
                yield replace(reply, text="", num_tokens=0, finish_reason="error", error=error) if error else reply

    record = run_stage(tmp_path, asking(Refusing("echo", lambda asked, seed: asked), 12))
    assert record["tokens"]["prompt"] == record["usage"]["asked_tokens"] == 27 - 3, "what a server withheld, it read"


def test_a_resumed_stage_adds_up(tmp_path):
    engine = ScriptedEngine.open("echo")
    whole = run_stage(tmp_path / "whole", asking(engine, 3))
    with pytest.raises(EngineError):
        run_stage(tmp_path / "cut", asking(engine, 3, fail_at=3))
    engine.take_usage()
    resumed = run_stage(tmp_path / "cut", asking(engine, 3))
    counted = [name for name in COUNTED if name.endswith("tokens")]
    assert {name: resumed["usage"][name] for name in counted} == {name: whole["usage"][name] for name in counted}
    assert resumed["tokens"] == whole["tokens"]
    assert resumed["fingerprint"] == whole["fingerprint"], "what it cost decides nothing"
    assert resumed["outputs"] == whole["outputs"]


numbers = st.integers(0, 10**9)


@given(st.lists(st.tuples(numbers, numbers, numbers, st.booleans(), st.integers(0, 9))))
def test_parts_give_back_what_they_took(calls):
    """An account that is made of stored parts is the account that stored them."""
    spent, again = Spending(), Spending()
    for asked, generated, seconds, told, num_untold in calls:
        mark = spent.mark()
        usage = {"asked_tokens": asked, "read_tokens": asked // 2, "generated_tokens": generated, "prefill_seconds": 0.5}
        spent.add_tokens(asked, generated, num_untold)
        spent.add_engine(seconds, usage if told else None, asked, generated)
        again.add_stored(spent.since(mark, 1.5))
    assert again.usage == pytest.approx(spent.usage)
    assert (again.tokens, again.num_untold) == (spent.tokens, spent.num_untold)
    assert again.earlier_seconds == pytest.approx(1.5 * len(calls))
    assert again.record() == spent.record()


def test_a_part_of_a_version_that_told_no_usage_counts_as_untold():
    spent = Spending()
    spent.add_stored({"prompt_tokens": "7", "generated_tokens": "2", UNTOLD: "0", "seconds": "1.0", SHORTAGES: "[]"})
    record = spent.record()
    assert (record["asked_tokens"], record["read_tokens"], record["untold_tokens"]) == (7, None, 7)


def test_peaks_of_all_attempts_count():
    spent = Spending()
    part = {"prompt_tokens": "0", "generated_tokens": "0", UNTOLD: "0", "seconds": "1.0", SHORTAGES: "[]"}
    for rss, gpu, kind in ((5, None, "stage"), (9, 3, "process"), (7, 2, "stage")):
        usage = {**dict.fromkeys(COUNTED, 0), "peak_rss_bytes": rss, "peak_gpu_bytes": gpu, "peak_of": kind}
        spent.add_stored({**part, "usage": json.dumps(usage)})
    assert spent.peaks() == {"peak_rss_bytes": 9, "peak_gpu_bytes": 3, "peak_of": "process"}


HOLD = """
import sys
from selfreward.spending import PeakMemory
before = bytearray(300 * 2**20); del before
memory = PeakMemory()
small = bytearray(60 * 2**20)
peak = memory.peak()
assert peak["peak_gpu_bytes"] is None and "torch" not in sys.modules
print(peak["peak_rss_bytes"], peak["peak_of"])
"""


def test_the_peak_is_the_stages_own_where_the_system_sets_its_mark_back():
    said = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=True).stdout.split()
    peak, kind = int(said[0]), said[1]
    assert peak > 60 * MIB
    if kind == "stage":
        assert peak < 250 * MIB, "what was held before the stage does not count"
    else:
        assert peak > 300 * MIB


def test_a_mark_that_cannot_be_set_back_is_said_to_be_the_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(spending, "_CLEAR", tmp_path / "no-such-folder" / "clear_refs")
    assert PeakMemory().peak()["peak_of"] == "process"
    monkeypatch.setattr(spending, "_STATUS", tmp_path / "no-status")
    assert PeakMemory().peak()["peak_rss_bytes"] > 10 * MIB, "elsewhere the system's other count"
