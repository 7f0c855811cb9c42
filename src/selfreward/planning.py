"""What a run would do, found without doing it: which stages are reused, go on, are done, and which no longer fit.

The pipeline is walked with a `Run` whose `stage` computes identities and looks at the folder, and works nothing; so
`pipeline.py` stays the one description of the algorithm. `prepare` does what follows from a plan before any work: stop and
name every difference, write down that somebody accepted them, or move stages aside that are to be done again.
Fingerprints, counts and what lies in the folder decide; no time does.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from selfreward.artifacts import Artifact, Run, RunDir, Stage, fingerprint, read_json, write_json
from selfreward.config import Config
from selfreward.drift import ACCEPTED, Change, NamedChange, compare_versions, is_accepted, name_changes
from selfreward.environment import current_versions
from selfreward.errors import CorruptArtifactError, DriftError, SelfRewardError, StoppedError, UsageError
from selfreward.progress import NullProgress
from selfreward.reuse import (
    BEGUN,
    PARTS,
    RECORD,
    check_outputs,
    committed_parts,
    identify,
    identity_changes,
    read_begun,
    read_record,
)
from selfreward.stopping import Stop
from selfreward.types import Counts

Walk = Callable[[Run], Iterable[Artifact]]
State = Literal["done", "stale", "damaged", "partly", "waiting"]
"""`stale`: finished or begun with other settings; `partly`: begun; `waiting`: nothing there."""
Action = Literal["reuse", "accept", "go on", "do", "again", "stop", "later", "not known yet"]
"""`accept`: reuse although settings differ; `again`: move aside, then do; `later`: behind the stage that was asked for;
`not known yet`: what it needs depends on a stage that is not made."""
SUPERSEDED = "superseded"
EVALUATED = ("ranking", "tasks")
"""Folders of `selfreward eval RUN`."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run goes: stop after the stage `until`, do `again_from` and all behind it again, reuse finished stages although
    settings differ. `say` shows a line to a person; `stop` is looked at while large files are read."""

    until: str | None = None
    again_from: str | None = None
    accept_drift: bool = False
    say: Callable[[str], None] = field(default=lambda line: None)
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage: what lies in its folder, and what the run would do with it. `changes` are the differences that nobody
    accepted, `accepted` those that somebody did (as its record lists them), `inputs` the keys of the stages it reads."""

    key: str
    state: State
    action: Action
    changes: tuple[Change, ...] = ()
    accepted: tuple[Mapping[str, Any], ...] = ()
    inputs: tuple[str, ...] = ()
    num_parts: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Plan:
    """The stages in order. `extra`: stages in the folder that these settings do not ask for; `problem`: why the settings
    cannot be compared with all stages."""

    directory: RunDir
    stages: tuple[PlannedStage, ...]
    extra: tuple[str, ...]
    old_config: Mapping[str, Any]
    new_config: Mapping[str, Any]
    problem: SelfRewardError | None = None

    @property
    def drift(self) -> list[NamedChange]:
        """Every difference once, with the stages that it touches."""
        changes = [(stage.key, change) for stage in self.stages for change in stage.changes]
        return name_changes(changes, self.old_config, self.new_config)

    @property
    def accepted(self) -> list[Mapping[str, Any]]:
        """What was accepted before, each difference once: a stage's record repeats what those before it had."""
        found: list[Mapping[str, Any]] = []
        for stage in self.stages:
            found += [item for item in stage.accepted if item not in found]
        return found

    def building_on(self, stale: Iterable[str]) -> list[str]:
        """Stages with something in their folders whose inputs, or the inputs of those, are among `stale`."""
        known = set(stale)
        found = []
        for stage in self.stages:
            if stage.key not in known and known.intersection(stage.inputs) and stage.state != "waiting":
                known.add(stage.key)
                found.append(stage.key)
        return found


class _Reached(Exception):  # noqa: N818 - not an error: the walk is where it should end
    """The walk came to the stage that is done again: what lies there and behind says nothing any more."""


class _Planner(Run):
    """A run that works nothing and writes nothing."""

    def __init__(self, config: Config, directory: RunDir, options: Options) -> None:
        quiet = logging.Logger("selfreward-plan")
        quiet.addHandler(logging.NullHandler())
        super().__init__(config, directory, NullProgress(), quiet)
        self.planned: list[PlannedStage] = []
        self.stop = options.stop
        self._options = options
        self._versions = current_versions()

    def stage(
        self, key: str, sections: Mapping[str, Any], inputs: Mapping[str, Artifact], work: Callable[[Stage], Counts]
    ) -> Artifact:
        """Look at a stage. What is stale stands with its own fingerprint, so that those behind it are told by their own
        differences, not by its."""
        if key == self._options.again_from:
            raise _Reached
        path = self.dir.root / key
        prints = {name: artifact.fingerprint for name, artifact in inputs.items()}
        identity = identify(key, sections, prints, self.config.random_seed)
        reads = tuple(artifact.key for artifact in inputs.values())
        wanted = fingerprint(identity)
        if not (path / RECORD).exists():
            self.planned.append(self._look_at_begun(path, identity, reads))
            return Artifact(key, path, wanted)
        try:
            record = read_record(path, identity)
            check_outputs(key, path, record)
        except CorruptArtifactError as error:
            self.planned.append(PlannedStage(key, "damaged", "stop", inputs=reads, problem=str(error)))
            return Artifact(key, path, wanted)
        changes = self._changes(record, identity)
        action: Action = "reuse" if not changes else "accept" if self._options.accept_drift else "stop"
        accepted = tuple(record.get(ACCEPTED, ()))
        self.planned.append(PlannedStage(key, "stale" if changes else "done", action, changes, accepted, reads))
        return Artifact(key, path, record["fingerprint"])

    def _look_at_begun(self, path: Path, identity: Mapping[str, Any], reads: tuple[str, ...]) -> PlannedStage:
        key, num_parts, begun = identity["stage"], len(committed_parts(path)), read_begun(path)
        changes = self._changes(begun, identity) if begun else ()
        if not changes:
            state, action = _unfinished(path, num_parts)
            return PlannedStage(key, state, action, accepted=_accepted(begun), inputs=reads, num_parts=num_parts)
        action = "stop"
        if self._options.accept_drift:  # parts of other settings cannot be used; those of other versions can
            action = "go on" if all(change.field.startswith("versions.") for change in changes) else "again"
        return PlannedStage(key, "stale", action, changes, _accepted(begun), reads, num_parts)

    def _changes(self, record: Mapping[str, Any], identity: Mapping[str, Any]) -> tuple[Change, ...]:
        versions = [c for c in compare_versions(record, self._versions) if not is_accepted(c, record)]
        return (*identity_changes(record, identity), *versions)


def make_plan(
    config: Config, walk: Walk, keys: Sequence[str], options: Options | None = None, directory: RunDir | None = None
) -> Plan:
    """The plan of a config over its run folder, or another `directory`; neither has to exist. `keys` are those that `walk`
    meets, in order.

    Raises UsageError for options that name no stage, or stages in the wrong order.
    """
    options = options or Options()
    check_options(options, keys)
    directory = directory or RunDir(Path(config.run_dir) / config.name)
    planner = _Planner(config, directory, options)
    problem = None
    try:
        for _ in walk(planner):
            pass
    except _Reached:
        pass
    except StoppedError:
        raise
    except SelfRewardError as error:
        # A stage whose settings hang on what another one makes: known when that one is there.
        is_waiting = any(stage.state != "done" for stage in planner.planned)
        problem = None if isinstance(error, CorruptArtifactError) and is_waiting else error
    rows = [*planner.planned, *(_unseen(directory, key, options, keys) for key in keys[len(planner.planned) :])]
    if options.until is not None:
        last = keys.index(options.until)
        rows[last + 1 :] = [_later(row) for row in rows[last + 1 :]]
    return Plan(
        directory,
        tuple(rows),
        tuple(key for key in found_stages(directory) if key not in keys),
        read_json(directory.config) if directory.config.is_file() else {},
        config.model_dump(mode="json"),
        problem,
    )


def prepare(run: Run, walk: Walk, keys: Sequence[str], options: Options) -> None:
    """What comes before any work. Raises DriftError naming every difference that nobody accepted, CorruptArtifactError for
    finished stages whose files changed, UsageError as `make_plan`, and what a stage says of settings that cannot work."""
    plan = make_plan(run.config, walk, keys, replace(options, stop=run.stop), run.dir)
    if damaged := [stage for stage in plan.stages if stage.state == "damaged"]:
        raise CorruptArtifactError(f"{damaged[0].problem}, or do it again with --from {damaged[0].key}")
    if plan.drift and not options.accept_drift:
        raise DriftError(describe_drift(plan))
    if plan.problem is not None:
        raise plan.problem
    for key in plan.extra:
        options.say(f"{key} is in {plan.directory.root}, but these settings do not ask for it: left as it is")
    new = _accept(plan) if options.accept_drift else []
    if new:
        options.say(f"drift accepted and written into the records of {', '.join(dict.fromkeys(i['stage'] for i in new))}")
        run.logger.warning("drift accepted", extra={"data": {"changes": new}})
    before = keys[: keys.index(options.again_from)] if options.again_from else keys
    stages = [stage.key for stage in plan.stages if stage.action == "again" and stage.key in before]
    if options.again_from:
        stages = [key for key in keys if key not in before and has_work(run.dir.root / key)] + list(plan.extra)
        for stage in plan.stages:  # nothing is moved aside for work that would begin with a damaged file
            if stage.state == "done" and stage.key not in stages:
                run.intact.check(stage.key, run.dir.root / stage.key)
    moved = supersede(plan.directory, stages, options.again_from or (stages[0] if stages else ""))
    if moved is not None:
        options.say(f"{', '.join(dict.fromkeys(stages))}: moved to {moved}, to be done again; delete that folder when you like")
        run.logger.info("stages moved aside", extra={"data": {"stages": stages, "to": str(moved)}})
    run.accepted = [*plan.accepted, *new]


def describe_drift(plan: Plan) -> str:
    """What differs, which stages it touches, and the three ways on."""
    stale = [stage.key for stage in plan.stages if stage.changes]
    lines = [f"{plan.directory.root} was made with other settings; nothing was done"]
    touched = [stage.key for stage in plan.stages if stage.state not in ("waiting", "damaged")]
    for change in plan.drift:
        stages = "all stages" if list(change.stages) == touched else ", ".join(change.stages)
        lines.append(f"  {change} ({stages})")
    if behind := plan.building_on(stale):
        lines.append(f"  built on these: {', '.join(behind)}")
    lines.append(
        f"set another `name`; or add --from {stale[0]} to do that stage and all behind it again; "
        "or --accept-drift to reuse the finished stages as they are, which is written into their records"
    )
    return "\n".join(lines)


def supersede(directory: RunDir, keys: Iterable[str], label: str) -> Path | None:
    """Move stage folders, and the report made of them, to `superseded/<time>-<stage>/`; the folder, or None for no stages.

    Whatever is killed in between leaves stages from the first ones on, as a run that was stopped would.
    """
    wanted = list(dict.fromkeys(keys))
    whole = [key for key in wanted if not any(key != other and key.startswith(f"{other}/") for other in wanted)]
    if not whole:
        return None
    base = directory.root / SUPERSEDED / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{label.replace('/', '-')}"
    target, number = base, 1
    while target.exists():  # two within a second, or a clock that was put back
        number += 1
        target = base.with_name(f"{base.name}-{number}")
    target.mkdir(parents=True)
    for file in (directory.config, directory.environment):
        if file.is_file():
            shutil.copy2(file, target / file.name)
    for file in (directory.report, directory.summary):
        if file.is_file():
            file.rename(target / file.name)
    for key in reversed(whole):
        (target / key).parent.mkdir(parents=True, exist_ok=True)
        (directory.root / key).rename(target / key)
    return target


def _accept(plan: Plan) -> list[Mapping[str, Any]]:
    """Write the differences into the records of the stages that are kept; what was written."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    written: list[Mapping[str, Any]] = []
    for stage in plan.stages:
        if stage.action not in ("accept", "go on") or not stage.changes:
            continue
        path = plan.directory.root / stage.key / (RECORD if stage.action == "accept" else BEGUN)
        record = read_json(path)
        new = [{"stage": stage.key, "field": c.field, "old": c.old, "new": c.new, "date": date} for c in stage.changes]
        write_json(path, {**record, ACCEPTED: [*record.get(ACCEPTED, ()), *new]})
        written += new
    return written


def check_options(options: Options, keys: Sequence[str]) -> None:
    """Raise UsageError for options that name no stage, or stages in the wrong order."""
    for key in (options.until, options.again_from):
        if key is not None and key not in keys:
            raise UsageError(f"unknown stage {key!r}; this config has: {', '.join(keys)}")
    if options.until and options.again_from and keys.index(options.until) < keys.index(options.again_from):
        raise UsageError(f"--from {options.again_from} comes after {options.until}, where this command ends")


def _unseen(directory: RunDir, key: str, options: Options, keys: Sequence[str]) -> PlannedStage:
    """A stage that the walk did not come to, by its folder alone."""
    path = directory.root / key
    num_parts = len(committed_parts(path))
    state: State = "done"
    action: Action = "not known yet"
    if not (path / RECORD).exists():
        state, action = _unfinished(path, num_parts)
    if options.again_from is not None and keys.index(key) >= keys.index(options.again_from):
        action = "do" if state == "waiting" else "again"
    return PlannedStage(key, state, action, num_parts=num_parts)


def _unfinished(path: Path, num_parts: int) -> tuple[State, Action]:
    return ("partly", "go on" if num_parts else "do") if has_work(path) else ("waiting", "do")


def _later(row: PlannedStage) -> PlannedStage:
    return row if row.action == "stop" else replace(row, action="later")


def _accepted(begun: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], ...]:
    return tuple((begun or {}).get(ACCEPTED, ()))


def has_work(path: Path) -> bool:
    """Whether a stage left files before it was stopped; evaluations inside a stage's folder are their own stage."""
    return path.is_dir() and any(item.name != "evals" for item in path.iterdir())


def found_stages(directory: RunDir) -> list[str]:
    """Keys of all stages of the method in the folder that are finished or begun; what `selfreward eval` made is not its own."""
    files = [path for name in (RECORD, BEGUN) for path in directory.root.rglob(name)]
    folders = {file.parent.parent if file.parent.name == PARTS else file.parent for file in files}
    keys = sorted(folder.relative_to(directory.root).as_posix() for folder in folders)
    return [key for key in keys if key.partition("/")[0] not in (SUPERSEDED, *EVALUATED)]
