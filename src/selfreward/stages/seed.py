"""The human seed data (paper section 3.1): sources -> ift, eft_train, ranked_train, ranked_heldout, prompts_heldout.

In: the sources of `seed.sources`, read as streams, once. Out: five tables; no prompt of a held-out table is in a training
table, none of EFT in IFT, neither as equal text nor with a ROUGE-L above `seed.max_overlap`. Rows that a source names as
training or held-out data go in file order; the others in the order of a hash of their ids, so every run over the same
files holds out the same prompts. Rows that leave are counted: the source's own reasons, `duplicate`,
`overlaps_heldout`, `overlaps_eft`, `overlaps_ift`, `over_limit`, `unusable_split`.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from selfreward.artifacts import Artifact, Run, Stage, hash_file, read_json, read_rows
from selfreward.config import Config, SeedConfig, SourceConfig
from selfreward.errors import DataError
from selfreward.judging import check_targets
from selfreward.lab.seed_files import write_seed_files
from selfreward.rubrics import load_rubric
from selfreward.sources import read_source
from selfreward.sources.digests import Digests
from selfreward.sources.records import Record
from selfreward.stages._pool import SPLITS, Candidate, Pool, SplitName
from selfreward.stages._seed_notes import SourceNotes
from selfreward.stages._split import Splitter, shared_prompts
from selfreward.texts import counted
from selfreward.types import Counts, Demonstration, Drop, EftExample, Prompt, RankedSet

LAB_FOLDER = "source"
"""Inside the stage's folder: the micro-world's files, as a seed folder."""
_STARVED = (
    "; rows left as over_limit because enough others came before them, which then overlapped: name sources of held-out rows "
    "first in seed.sources, or raise the seed.num_... of that table"
)
_TYPES: dict[SplitName, type] = {
    "ranked_heldout": RankedSet,
    "prompts_heldout": Prompt,
    "eft_train": EftExample,
    "ranked_train": RankedSet,
    "ift": Demonstration,
}


def run(run: Run) -> Artifact:
    """Read, split and store the seed data.

    Raises DataError when a source cannot be read, when no IFT pair or held-out prompt is left, and when M1 shall learn to
    judge but nothing is there to teach it, or a ready target does not say its score in the rubric's words.
    """
    config = run.config.seed
    # Contents count, not where they lie.
    section = config.model_dump(mode="json", exclude={"path": True, "sources": {"__all__": {"path", "allow_download"}}})
    artifact = run.stage("seed", {"seed": section, "files": source_hashes(config, run.stop.check)}, {}, _work)
    if run.config.mode == "self-rewarding":
        # Said while the tables are made, before they count as finished; again here, for a finished stage and another rubric.
        targets = read_rows(artifact.path / "eft_train.parquet", EftExample)
        check_targets(load_rubric(run.config.judge.rubric, "pointwise"), targets)
        _check_something_teaches(
            run.config, len(targets), read_json(artifact.path / "record.json")["notes"]["num_ranked_train"]
        )
    return artifact


def located_sources(config: SeedConfig) -> tuple[SourceConfig, ...]:
    """The sources, each with its path; the micro-world has none."""
    return tuple(
        source if source.path or source.format == "lab" else source.model_copy(update={"path": config.path})
        for source in config.sources
    )


def source_hashes(config: SeedConfig, look: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Content hash of each file that is read, by source and name: of a folder all files in it, of the micro-world the
    files that stand for it. A data set of the hub is known by its name."""
    hashes = {}
    for place, source in enumerate(located_sources(config)):
        with tempfile.TemporaryDirectory(prefix="selfreward-") as folder:
            path = Path(_as_files(source, Path(folder), config).path).expanduser()
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            found = {f"{place}/{f.name}": hash_file(f, look) for f in files if f.is_file() and not f.name.startswith(".")}
            hashes.update(found or {f"{place}": source.path})
    return hashes


def _as_files(source: SourceConfig, folder: Path, config: SeedConfig) -> SourceConfig:
    """The micro-world as a seed folder; other sources as they are."""
    if source.format != "lab":
        return source
    write_seed_files(folder, config.heldout)
    return source.model_copy(update={"format": "seed-folder", "path": str(folder)})


def _work(stage: Stage) -> Counts:
    config = stage.config.seed
    notes = [SourceNotes(source) for source in located_sources(config)]
    with stage.rejecting() as keep:

        def reject(drop: Drop, source: int) -> None:
            stage.run.stop.check()  # splitting can take long too
            notes[source].dropped[drop.reason] += 1
            keep(drop)

        pool, ids = Pool(config, reject), Digests()
        for place, source in enumerate(located_sources(config)):
            with stage.run.progress.task(f"seed: {source.path or source.format}", None) as advance:
                for item in _read(stage, (place, source), notes[place], ids):
                    stage.run.stop.check()
                    if isinstance(item, Drop):
                        reject(item, place)
                    else:
                        notes[place].see(item)
                        pool.take(item, place)
                    advance(1)
        splitter = Splitter(pool, config, reject)
        splitter.split()
        _check_tables(splitter.tables, notes)
        if stage.config.mode == "self-rewarding":
            _check_eft(stage.config, splitter.tables)
    return _store(stage, splitter, notes)


def _read(stage: Stage, numbered: tuple[int, SourceConfig], notes: SourceNotes, ids: Digests) -> Iterator[Record | Drop]:
    """A source's stream; its format is logged, its rows are counted in the notes. Ids of further sources begin with
    `s2-`, `s3-`, ..., so that another source changes none of the first one's; `ids` are all that were given out."""
    place, source = numbered
    files = _as_files(source, stage.path / LAB_FOLDER, stage.config.seed)
    reading, items = read_source(files, f"s{place + 1}" if place else "", stage.config.seed.on_bad_row, ids)
    said = {"source": place + 1, "path": source.path, "format": reading.format, "detected": reading.detected}
    stage.logger.info("seed source opened", extra={"data": said})
    notes.reading = reading
    num_records = 0
    for item in items:
        notes.num_rows += 1
        num_records += isinstance(item, Record)
        yield item
        if num_records == source.cap:
            notes.stopped_at_cap = True
            break
    assert reading.num_rows == notes.num_rows, f"source {place + 1} counted {reading.num_rows} rows, not {notes.num_rows}"


def _check_tables(tables: Mapping[SplitName, Sequence[Candidate]], notes: Sequence[SourceNotes]) -> None:
    dropped = dict(sum((source.dropped for source in notes), Counter[str]()))
    num_rows = sum(source.num_rows for source in notes)
    needs: tuple[tuple[SplitName, str, str], ...] = (
        ("ift", "IFT pair (a prompt with its response)", "ift"),
        ("prompts_heldout", "held-out prompt", "prompts"),
    )
    for split, what, role in needs:
        if not tables[split]:
            raise DataError(
                f"the seed sources leave no {what}: {counted(num_rows, 'row')} read, dropped: {_listed(dropped)}; "
                f"add a source with role {role} to seed.sources, or check what its filters and its split leave"
                + (_STARVED if dropped.get("over_limit") else "")
            )


def _check_eft(config: Config, tables: Mapping[SplitName, Sequence[Candidate]]) -> None:
    """Whether M1 can learn to judge, before anything is stored; a target that does not say its score names its source."""
    rubric = load_rubric(config.judge.rubric, "pointwise")
    for place, source in enumerate(located_sources(config.seed)):
        rows = [to_row(item.record, "eft_train") for item in tables["eft_train"] if item.source == place]
        try:
            check_targets(rubric, [row for row in rows if isinstance(row, EftExample)])
        except DataError as error:
            raise DataError(f"{source.path or source.format}: {error}") from error
    _check_something_teaches(config, len(tables["eft_train"]), len(tables["ranked_train"]))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in sorted(counts.items())) or "none"


def _store(stage: Stage, splitter: Splitter, notes: Sequence[SourceNotes]) -> Counts:
    tables = splitter.tables
    prompts = {split: [item.record.prompt for item in items] for split, items in tables.items()}
    shared = list(shared_prompts(prompts, stage.config.seed.max_overlap))
    assert not shared, f"splits share prompts: {shared[:3]}"
    repeated = [id_ for id_, number in Counter(i.record.id for items in tables.values() for i in items).items() if number > 1]
    assert not repeated, f"rows share ids: {repeated[:3]}"
    for split, items in tables.items():
        stage.write_rows(split, [to_row(item.record, split) for item in items], _TYPES[split])
        for item in items:
            notes[item.source].keep(item.record, split)
    short = {split: number for split, number in splitter.asked.items() if len(tables[split]) < number}
    if short:
        stage.logger.info("seed tables shorter than asked", extra={"data": short})
    stage.notes |= {f"num_{split}": len(tables[split]) for split in SPLITS}
    stage.notes |= {
        "asked": splitter.asked,
        "overlaps": {split: dict(sorted(found.items())) for split, found in splitter.overlaps.items() if found},
        "sources": [source.plain() for source in notes],
    }
    dropped = sum((source.dropped for source in notes), Counter[str]())
    return Counts(sum(source.num_rows for source in notes), sum(map(len, tables.values())), dropped)


def to_row(record: Record, split: SplitName) -> Demonstration | EftExample | Prompt | RankedSet:
    """A record as a row of a table."""
    if split in ("ranked_heldout", "ranked_train"):
        return RankedSet(record.id, record.prompt, record.replies, record.ranks)
    if split == "prompts_heldout":
        return Prompt(record.id, record.prompt, "heldout")
    assert record.response is not None, f"record {record.id} has no response"
    if split == "ift":
        return Demonstration(record.id, record.prompt, record.response)
    assert record.judgement is not None, f"record {record.id} has no judgement"
    assert record.score is not None, f"record {record.id} has no score"
    return EftExample(record.id, record.prompt, record.response, record.judgement, record.score)


def _check_something_teaches(config: Config, num_targets: int, num_ranked: int) -> None:
    """Said now, not after the SFT baseline is trained."""
    if num_targets or num_ranked or config.eft.min_targets == 0:
        return
    why = "seed.num_eft=0" if config.seed.num_eft == 0 else "no source has EFT targets or ranked replies for training"
    raise DataError(
        f"nothing to teach M1 to judge: {why}. Add a source with role ranked (EFT targets are built from replies that "
        "people ranked) or role eft (ready targets) to seed.sources, raise seed.num_eft if it is 0, set mode=no-eft, or "
        "eft.min_targets=0 to train M1 on IFT alone"
    )
