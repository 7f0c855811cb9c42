"""Seeds and variants: parsing, the arithmetic over seeds, the printed table."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfreward.errors import UsageError
from selfreward.experiments import METRICS, VARIANTS, over_seeds, parse_seeds, seeds_table, summarise, to_plain_tree


def run_summary(m1: float, m3: float) -> dict:
    def figure(value: float) -> dict:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 100}

    return {
        "models": [{"model": name, **{metric: figure(value) for metric in METRICS}} for name, value in (("M1", m1), ("M3", m3))]
    }


def test_parse_seeds() -> None:
    assert parse_seeds("3, 1,2") == (3, 1, 2)
    for text in ("", "1,1", "a", "-1"):
        with pytest.raises(UsageError):
            parse_seeds(text)


def test_interval_over_seeds_is_students_t() -> None:
    # Mean 0.5, sample sd 0.1, n 3: half width = t(0.975, 2) * 0.1 / sqrt(3), t = 4.302653.
    estimate = over_seeds([0.4, 0.5, 0.6])
    assert estimate.value == pytest.approx(0.5)
    assert estimate.high - estimate.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert estimate.n == 3


def test_missing_values_lower_n_and_one_seed_has_no_interval() -> None:
    assert over_seeds([None, 0.5]).low is None
    assert over_seeds([None, 0.5]).n == 1
    assert over_seeds([None]).value is None


def test_summary_takes_differences_within_seeds() -> None:
    results = {
        "1": {
            "self_rewarding": run_summary(3.0, 3.6),
            "positives_only": run_summary(3.0, 3.5),
            "random_judge": run_summary(3.0, 2.9),
        },
        "2": {
            "self_rewarding": run_summary(3.2, 3.6),
            "positives_only": run_summary(3.2, 3.7),
            "random_judge": run_summary(3.2, 3.2),
        },
    }
    summary = summarise(results, ("self_rewarding", "positives_only", "random_judge"))
    assert summary["differences"]["oracle_mean"].value == pytest.approx(0.5)
    assert summary["controls"]["positives_only"]["oracle_mean"].value == pytest.approx(0.5)
    assert summary["controls"]["random_judge"]["oracle_mean"].value == pytest.approx(-0.05)
    assert summary["main_minus_variant"]["positives_only"]["oracle_mean"].value == pytest.approx(0.0)
    json.dumps(to_plain_tree(summary))
    text = seeds_table(to_plain_tree(summary), 80)
    assert "self_rewarding" in text
    assert "0.500" in text
    assert max(map(len, text.splitlines())) <= 80


def test_variants_share_only_stages_before_their_change() -> None:
    assert "round-1/judgements" not in VARIANTS["random_judge"].shared
    assert "m1" not in VARIANTS["no_eft"].shared
    assert "round-1/model" not in VARIANTS["positives_only"].shared


POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from selfreward.experiments import _end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_killed_command(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True) as command:
        worker = int(command.stdout.readline())
        os.kill(worker, 0)  # it lives
        command.send_signal(how)
        command.wait(timeout=60)
        for _ in range(200):
            if not is_alive(worker):
                return
            time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived its command")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
