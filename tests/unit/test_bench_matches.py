"""bench/speed: one model against its peers; who plays by default, and how a batch size is tried."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from speed.cli import DEFAULT_PEERS, DEFAULT_SHARES, ONLY  # noqa: E402
from speed.contest import BenchError, Made  # noqa: E402
from speed.matches import VOTING, Match, Settings  # noqa: E402
from speed.models import load_model, load_tokenizer, write_model  # noqa: E402
from speed.names import MODELS, PEERS  # noqa: E402
from speed.peers import Generate, GenerateBatch, GenerateSetting  # noqa: E402
from speed.table import COLUMNS  # noqa: E402
from speed.workloads import QUICK, Sizes, Workload, judge  # noqa: E402


class Closable:
    """A peer of tests: it may refuse, and tells whether it was closed."""

    name, setting = "HF generate", "nothing set"

    def __init__(self, workload: Workload, does_fail: bool) -> None:
        self._workload, self._does_fail, self.is_closed = workload, does_fail, False

    def run(self) -> Made:
        if self._does_fail:
            raise BenchError("it ended")
        return Made(0.5, self._workload.asked)

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("does_fail", [False, True])
def test_peers_are_counted_in_candidates_and_closed_whatever_happens(
    does_fail: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Closable] = []

    def peer(_: Match, name: str, workload: Workload) -> Closable:
        made.append(Closable(workload, does_fail))
        return made[-1]

    monkeypatch.setattr(Match, "_peer", peer)
    match = Match("tiny", tmp_path, Settings(1, 1, 8, True, None), lambda _: None)
    if does_fail:
        with pytest.raises(BenchError, match="it ended"):
            match.play("expected", QUICK, ["generate"])
    else:
        (row,) = match.play("expected", QUICK, ["generate"])
        assert row.peer.median == QUICK.num_weighed / 0.5, "candidates, not tokens"
    assert [contestant.is_closed for contestant in made] == [True]


def test_names_of_defaults_are_names_and_fit_the_table() -> None:
    for keys in (DEFAULT_PEERS, DEFAULT_SHARES):
        assert set(keys) <= {(model, only) for model in MODELS for only in ONLY}
    assert {name for names in DEFAULT_PEERS.values() for name in names} <= set(PEERS)
    width = dict(COLUMNS)["peer is"]
    assert all(len(name) <= width for name in (*VOTING, *VOTING.values()))
    assert {Generate.name, GenerateBatch.name} <= set(VOTING)


def test_a_batch_size_is_tried_with_full_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 192 rows in batches of 128 the second batch holds 64."""
    tiny = write_model("tiny", tmp_path)
    tokenizer = load_tokenizer(tiny)
    workload = judge(tokenizer, Sizes(num_judged=4, num_votes=3, rubric=4, own=(2, 5), vote=2))
    peer = Generate(load_model(tiny), tokenizer.pad_token_id, workload, GenerateSetting(8))
    widths: list[int] = []
    run = peer._run
    monkeypatch.setattr(peer, "_run", lambda batches: widths.extend(map(len, batches)) or run(batches))
    peer.rate_of_some(8)
    peer.rate_of_some(12)
    assert set(widths) == {8}
