"""What can be known before a model loads: files that a config names, model folders, rubrics, disk. Needs no torch.

Every check runs, whatever the others found: a person sees all problems at once.
"""

from collections.abc import Sequence

from selfreward.config import FIRST, POLICY, Config
from selfreward.disk import free_bytes
from selfreward.judging import check_judge_mode
from selfreward.preflight.data import check_filters, check_sources
from selfreward.preflight.findings import WARNING, Findings
from selfreward.preflight.roles import check_answerer, check_judge_engines, check_player, check_script, check_start
from selfreward.preflight.space import check_place, in_bytes, plan_writes, space_problem
from selfreward.rubrics import Rubric, load_rubric
from selfreward.rubrics.header import Kind
from selfreward.stages._panel import panel_rubrics
from selfreward.texts import counted

__all__ = ["WARNING", "check_config", "check_judge", "check_seed", "check_writer"]


def check_config(config: Config) -> list[str]:
    """Check everything a config points to; returns one line a finding for people, some of them warnings.

    Raises ConfigError naming the setting that cannot work, DataError for a seed file, MissingExtraError for a package, and
    ProblemsError for several.
    """
    findings = Findings()
    findings.line(f"config {config.name!r} is valid: {counted(config.num_rounds, 'round')}, mode {config.mode}")
    _check_rubrics(config, findings)
    with findings.part():
        check_judge_engines(config)
    if config.engine.name == "scripted":
        with findings.part():
            findings.line(check_script(config.engine.script or "", "engine.script"))
    start = check_start(config, findings)
    _check_players(config, findings)
    check_filters(config, findings)
    check_sources(config, findings)
    _check_space(config, None if start is None else start.num_parameters, findings)
    return findings.result()


def check_seed(config: Config) -> list[str]:
    """What reading the seed data alone needs: its sources, and a place to write; raises as `check_config` does."""
    findings = Findings()
    check_sources(config, findings)
    with findings.part():
        check_place(config)
    return findings.result()


def check_judge(config: Config, setting: str, model: str, rubric: Rubric) -> list[str]:
    """What one judge alone needs; `setting` names where its model was given. Raises as `check_config` does."""
    findings = Findings()
    if rubric.kind == "pointwise":
        with findings.part():
            check_judge_mode(rubric, config)
        with findings.part():
            check_judge_engines(config)
    check_player(config, setting, model, rubric, findings)
    return findings.result()


def check_writer(config: Config, setting: str, model: str) -> list[str]:
    """What a model needs that only answers; `setting` names where it was given. Raises as `check_config` does."""
    findings = Findings()
    check_answerer(config, setting, model, findings)
    return findings.result()


def _check_rubrics(config: Config, findings: Findings) -> None:
    """Every rubric that is used can be read, and judges' go with `judge.mode`."""
    wanted: list[tuple[str, str, Kind]] = [
        ("judge.rubric", config.judge.rubric, "pointwise"),
        ("propose.template", config.propose.template, "propose"),
    ]
    if config.eval.head_to_head == POLICY:
        wanted.append(("eval.pairwise_rubric", config.eval.pairwise_rubric, "pairwise"))
    for setting, name, kind in wanted:
        with findings.part():
            rubric = load_rubric(name, kind)
            findings.line(_describe(setting, rubric))
            if kind == "pointwise":
                check_judge_mode(rubric, config)


def _check_players(config: Config, findings: Findings) -> None:
    """Who judges and proposes, and by which rubrics. `m1` is made by the run itself."""
    rubrics: Sequence[Rubric | None] = [None] * len(config.judge.members)
    with findings.part():
        rubrics = panel_rubrics(config.judge)
    for number, (seat, rubric) in enumerate(zip(config.judge.members, rubrics, strict=True)):
        place = f"judge.panel[{number}]" if config.judge.panel else "judge"
        if config.judge.panel and rubric is not None:
            findings.line(_describe(f"{place}.rubric", rubric))
            with findings.part():
                check_judge_mode(rubric, config)
        if seat.model != FIRST:
            check_player(config, f"{place}.model", seat.model, rubric, findings)
    proposer = None
    with findings.part():
        proposer = load_rubric(config.propose.template, "propose")
    check_player(config, "propose.model", config.propose.model, proposer, findings)


def _check_space(config: Config, num_parameters: int | None, findings: Findings) -> None:
    """The disk takes what the run will write; of a model that is not here the size is not known."""
    with findings.part():
        place = check_place(config)
        free = free_bytes(place)
        if num_parameters is None:
            findings.line(f"run_dir: {in_bytes(free)} free; the models' size is not known before model.path is here")
            return
        plan = plan_writes(config, num_parameters)
        if problem := space_problem(config, plan, free):
            raise problem
        findings.line(f"run_dir: about {in_bytes(plan.total)} to write, {in_bytes(free)} free")


def _describe(setting: str, rubric: Rubric) -> str:
    return f"{setting}: {rubric.name} ({rubric.content_hash[:12]})"
