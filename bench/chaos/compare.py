"""When two runs of the same config count as equal: the same files, with the same bytes.

Nothing else is forgiven than what tells when and where work was done:

- run.log: a diary; it is not compared.
- environment.json: without `commit`, which changes while somebody works on the code. `record.json`: without `started`,
  `commit`, seconds and peaks of memory; tokens are compared. `summary.json`: without seconds, rates and peaks, anywhere.
- report.html: without dates, durations and commits in its text, and without the table of costs (summary.json has its tokens).

Everything else is compared byte by byte: weights, tokenizers, Parquet tables, loss curves, figures, config.json. A file that
only one of the two has is a difference, whatever its name, so leftovers of a killed process are differences too.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

RECORD, LOG = "record.json", "run.log"
TEMPORARY_PREFIX = ".tmp-"
SPENT = (
    "seconds", "prefill_seconds", "decode_seconds", "engine_seconds", "training_seconds",
    "rate", "peak_rss_bytes", "peak_gpu_bytes", "peak_of",
)  # fmt: skip
FORGIVEN = {"record.json": ("started", "commit", *SPENT), "environment.json": ("commit",), "summary.json": SPENT}
"""File name -> fields that may differ, at any depth."""
MOMENTS_IN_TEXT = re.compile(
    r"(?s:<h3 id=\"cost\">.*?</table>)|"
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|\b\d+\.\d s\b|\b\d+ min \d\d s\b|\b\d+ h \d\d min\b|\b[0-9a-f]{40}(\+changes)?\b"
)

Content = dict[str, str]
"""File, relative to the run -> SHA-256 of what is compared of it."""


def read_content(root: Path) -> Content:
    """What is compared of a run's folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = [path.relative_to(root).as_posix() for path in files]
    return {name: digest(path) for name, path in zip(names, files, strict=True) if name != LOG}


def digest(path: Path) -> str:
    """SHA-256 of a file without what is forgiven. A JSON file that cannot be read is taken as it is: it differs."""
    data = path.read_bytes()
    if path.name in FORGIVEN:
        try:
            kept = _without(json.loads(data), FORGIVEN[path.name])
            data = json.dumps(kept, indent=2, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
        except ValueError:
            data = b"not JSON: " + data
    elif path.name == "report.html":
        data = MOMENTS_IN_TEXT.sub("TIME", data.decode("utf-8", errors="surrogateescape")).encode("utf-8", "surrogateescape")
    return hashlib.sha256(data).hexdigest()


def differences(expected: Content, found: Content) -> list[str]:
    """One line a file that differs; none when the runs are equal."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - expected.keys()]
    lines += [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(lines)


def half_written(root: Path, expected: Content) -> list[str]:
    """What counts in the folder of a killed run although it is not whole; one line each.

    A record says that its stage is finished: it must be the one that the uninterrupted run wrote, beside the files that
    it lists. A stage that the log calls finished has a record. A table without a temporary name can be read to its end.
    """
    found = read_content(root)
    lines = []
    for path in sorted(root.rglob(RECORD)):
        name = path.relative_to(root).as_posix()
        key = name.removesuffix(f"/{RECORD}")
        if found[name] != expected.get(name):
            lines.append(f"{name} differs right after the kill")
            continue
        for output in json.loads(path.read_bytes())["outputs"]:
            if found.get(f"{key}/{output}") != expected[f"{key}/{output}"]:
                lines.append(f"{key} has a record, but {output} is not whole")
    lines += [f"{key} is finished by the log, but has no record" for key in _finished(root) if f"{key}/{RECORD}" not in found]
    for name in found:
        if name.endswith(".parquet") and not Path(name).name.startswith(TEMPORARY_PREFIX):
            lines += _damage(root, name)
    return lines


def _damage(root: Path, name: str) -> list[str]:
    try:
        pq.read_table(root / name)
    except Exception as error:  # noqa: BLE001 - whatever the reader says of a damaged table
        return [f"{name} cannot be read: {error}"]
    return []


def _finished(root: Path) -> Iterator[str]:
    """Keys of the stages that the log calls finished; its last line may be cut."""
    log = root / LOG
    for line in log.read_bytes().splitlines(keepends=True) if log.exists() else []:
        if line.endswith(b"\n") and (told := json.loads(line))["message"] == "stage finished":
            yield told["data"]["stage"]


def _without(tree: Any, fields: tuple[str, ...]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _without(value, fields) for key, value in tree.items() if key not in fields}
    return [_without(item, fields) for item in tree] if isinstance(tree, list) else tree
