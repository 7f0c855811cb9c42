"""One model against its peers, workload by workload."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfreward.engines.hf import HfEngine
from speed import roofline
from speed.contest import Contestant, Made, Ours, alternate, check_tokens, rates
from speed.models import load_model, load_tokenizer, shape_of, write_model
from speed.names import OWN
from speed.peers import best_batch, best_generate
from speed.table import Comparison
from speed.workers import Worker, job
from speed.workloads import Sizes, Workload, candidates, expected, expected_by_votes, judge

WORKER = Path(__file__).parents[1] / "vllm_worker.py"
GENERATE_SIZES = {"demo": (32, 64, 96, 192), "15M": (16, 32, 64, 128), "90M": (16, 32, 64)}
"""Batch sizes that `generate` is tried with; more of them where the best one lies at an end."""
BATCH_SIZES = (8, 16, 32, 64)
"""Rows at a time that `generate_batch` is tried with; more of them as above."""
TUNING_ROWS = {"demo": 192, "15M": 128, "90M": 64}
"""Rows that a setting is measured on: larger models show their differences on fewer, and take longer."""
QUICK_SIZES, QUICK_ROWS = (2, 4), 2
VOTES = (3, 1)
"""Sampled votes that an expected score is measured against; the first is what the paper does, and what peers sample."""
VOTING = {"HF generate": "generate, 3 votes", "HF generate_batch": "gen._batch, 3 v.", "vLLM (CPU)": "vLLM, 3 votes"}
"""Peers' names where their votes stand beside expected scores, short enough for the table."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure."""

    repeats: int
    threads: int
    batch_size: int
    quick: bool
    vllm_python: str | None


class Match:
    """One model. `tell` hears what goes on."""

    def __init__(self, model: str, folder: Path, settings: Settings, tell: Callable[[str], None]) -> None:
        self.machines: list[str] = []
        self._model = model
        self._path = write_model(model, folder)
        self._tokenizer = load_tokenizer(self._path)
        self._settings = settings
        self._tell = tell
        own = load_model(self._path)
        self._shape = shape_of(own)
        self._engine = HfEngine(own, self._tokenizer, settings.batch_size)

    def play(self, only: str, sizes: Sizes, names: Sequence[str]) -> list[Comparison]:
        """One workload's rows beside these peers. Raises BenchError when somebody makes other tokens than were asked for."""
        self._tell(f"{self._model}: {only}")
        others = [name for name in names if name != OWN]
        if only == "expected":
            return self._expected(sizes, others, OWN in names)
        return self._sampled((judge if only == "judge" else candidates)(self._tokenizer, sizes), sizes, others)

    def close(self) -> None:
        """Give the model back."""
        self._engine.close()

    def _sampled(self, workload: Workload, sizes: Sizes, names: Sequence[str]) -> list[Comparison]:
        ours = Ours(self._engine, workload, "ours", f"batch {self._settings.batch_size}")
        peers, runs = self._turns([ours], names, workload)
        amount = sizes.label(workload.name), "tokens", workload.num_new
        limit = self._limit(workload, amount[0])
        return [self._compare(ours, peer, runs, amount, limit) for peer in peers]

    def _expected(self, sizes: Sizes, names: Sequence[str], beside_own: bool) -> list[Comparison]:
        """Choices weighed by ours, beside votes sampled by ours and by the peers."""
        weighed = Ours(self._engine, expected(self._tokenizer, sizes), "ours", "6 choices, read once")
        votes = [expected_by_votes(self._tokenizer, sizes, number) for number in VOTES]
        own = [
            Ours(self._engine, workload, f"ours, {number} vote{'s' * (number > 1)}", f"{sizes.vote} tokens each")
            for number, workload in zip(VOTES, votes, strict=True)
        ]
        own = own if beside_own else []
        peers, runs = self._turns([weighed, *own], names, votes[0])
        amount = sizes.label(weighed.workload.name), "cand.", weighed.workload.num_items
        limit = self._limit(weighed.workload, amount[0])
        rows = [self._compare(weighed, contestant, runs, amount, limit) for contestant in own]
        # The peer is part of a row's key: it must say that candidates were judged by votes.
        beside = [self._compare(weighed, peer, runs, amount, limit) for peer in peers]
        return rows + [replace(row, peer_name=VOTING[row.peer_name]) for row in beside]

    def _turns(
        self, own: Sequence[Ours], names: Sequence[str], workload: Workload
    ) -> tuple[list[Contestant], dict[str, list[Made]]]:
        """Peers that do this workload, and the runs of all in turns."""
        peers: list[Contestant] = []
        try:
            for name in names:
                peers.append(self._peer(name, workload))
            for contestant in own:
                _warm_up(contestant)
            runs = alternate([*own, *peers], self._settings.repeats, self._tell)
        finally:
            for peer in peers:
                peer.close()
        for contestant in own:
            check_tokens(contestant.workload, contestant.name, runs[contestant.name])
        for peer in peers:
            check_tokens(workload, peer.name, runs[peer.name])
        return peers, runs

    def _peer(self, name: str, workload: Workload) -> Contestant:
        settings = self._settings
        if name == "vllm":
            assert settings.vllm_python is not None, "the command line asks for it"
            return Worker("vLLM (CPU)", (settings.vllm_python, str(WORKER)), job(self._path, workload, settings.threads))
        grids = GENERATE_SIZES.get(self._model, QUICK_SIZES), BATCH_SIZES
        num_rows = TUNING_ROWS.get(self._model, QUICK_ROWS)
        if settings.quick:
            grids, num_rows = (QUICK_SIZES, QUICK_SIZES), QUICK_ROWS
        find, grid = (best_generate, grids[0]) if name == "generate" else (best_batch, grids[1])
        return find(load_model(self._path), self._tokenizer.pad_token_id, workload, grid, num_rows, self._tell)

    def _compare(
        self, ours: Ours, peer: Contestant, runs: dict[str, list[Made]], amount: tuple[str, str, int], limit: roofline.Limit
    ) -> Comparison:
        """`amount`: of which workload, what is counted, and how many of it a run does."""
        label, unit, number = amount
        own_rates = rates(number, runs[ours.name])
        return Comparison(
            workload=label,
            model=self._model,
            unit=unit,
            ours=own_rates,
            peer=rates(number, runs[peer.name]),
            peer_name=peer.name,
            tokens=(sum(runs[ours.name][0].num_tokens), sum(runs[peer.name][0].num_tokens)),
            settings=(ours.setting, peer.setting),
            seconds=number / own_rates.median,
            limit=limit,
        )

    def _limit(self, workload: Workload, label: str) -> roofline.Limit:
        """Measured once a workload and told in `machines`, under the row's label."""
        work = roofline.least_work(self._shape, workload)
        num_rows = min(self._settings.batch_size, len(workload.requests))
        machine = roofline.measure_machine(self._shape, num_rows, work)
        self.machines.append(roofline.describe(f"{label}, {self._model}", work, machine, num_rows))
        return roofline.limit(work, machine)


def _warm_up(ours: Ours) -> None:
    """A few requests: the first call of an engine loads and allocates what later ones find."""
    some = ours.workload.requests[:4]
    small = replace(ours.workload, requests=some, prompt_ids=ours.workload.prompt_ids[: len(some)])
    Ours(ours.engine, small, "warm-up", "").run()
