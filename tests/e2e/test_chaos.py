"""A few kills of `make chaos`: a real run, SIGKILL in a training, a judging and others, and the same bytes at the end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "bench" / "chaos"
KINDS = ("seed", "m1", "judgements", "model")
SMALLER = (
    "num_rounds=1", "seed.num_heldout_prompts=2", "seed.num_heldout_ranked=2", "judge.num_votes=2", "eval.num_votes=1",
    "eval.bootstrap_samples=100",
)  # fmt: skip


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    options = ["--seed", "5", "--kills", "4", "--kills-per-run", "4", "--references", "1", "--kinds", ",".join(KINDS)]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *options, "--keep", str(tmp_path / "kept"), *SMALLER],
        capture_output=True, text=True, check=False, timeout=850,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("seed 5, 4 kills")
    assert lines[-1] == "4 passed, 0 failed"
    killed = [re.search(r"killed (in|right after) (\S+)", line) for line in lines]
    hit = [match[2].rsplit("/", 1)[-1] for match in killed if match]
    assert hit == list(KINDS), done.stdout
    # The comparison that found nothing would have found one bit of the weights.
    root = tmp_path / "kept" / "reference-1" / "runs" / "demo"
    sys.path.insert(0, str(CHAOS))
    from compare import differences, read_content

    before = read_content(root)
    weights = root / "round-1" / "model" / "checkpoint" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert differences(before, read_content(root)) == ["round-1/model/checkpoint/model.safetensors differs"]
