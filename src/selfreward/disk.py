"""What a disk's refusal means to a person: which file, what was needed, what to do.

An error of the operating system tells a number and a path. Here it becomes a `StorageError` with both and the way on; errors
that say nothing about the disk stay what they are.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfreward.errors import SelfRewardError, StorageError

_ROOM = "free some space there, or move the run's folder to a larger disk and set run_dir"
_RIGHTS = "make it writable, or set run_dir to a folder that is"
_REFUSALS = {
    errno.ENOSPC: ("no space is left on its disk", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("the file would be larger than this process may write", "raise the limit (ulimit -f)"),
    errno.EROFS: ("its disk is mounted read-only", _RIGHTS),
    errno.EACCES: ("this user may not write there", _RIGHTS),
    errno.EPERM: ("this user may not write there", _RIGHTS),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "move that file, or set run_dir to another folder"),
    errno.EEXIST: ("a file stands where a folder must be", "move that file away"),
    errno.EISDIR: ("there is a folder of that name", "move that folder away"),
    errno.ENAMETOOLONG: ("the path is too long for its disk", "shorten name or run_dir"),
    errno.EMFILE: ("this process has too many files open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("this machine has too many files open", "close other programs"),
    errno.EIO: ("the disk failed", "check the disk, or copy the run's folder to another one and set run_dir"),
    errno.ESTALE: ("the network disk lost the folder", "mount it again"),
}
"""errno -> (what is the matter, what to do)."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_WRITE_ONLY = _FULL | {errno.EFBIG, errno.EROFS}
"""Reading never gives these."""
_BELOW = 160
"""Characters of the longest path inside a run's folder, and some more."""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers, which are no Python, word an error of the operating system."""
_UNITS = ("B", "kB", "MB", "GB", "TB")


def refusal_of(error: BaseException, path: str | Path | None, needed: int | None = None) -> StorageError | None:
    """The error as a word about the disk, None where it says nothing about one.

    `path`: the file that was being written, or a folder with all that is written below it, or None where nobody knows.
    `needed`: a file's bytes, where they are known. What reading may raise as well counts only for a place of ours.
    """
    if isinstance(error, SelfRewardError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _RUST_ERROR.search(str(error))):
        number = int(found[1])
    if number not in _REFUSALS:
        return None
    is_folder = path is None or os.path.isdir(path)  # noqa: PTH112 - pathlib raises for a path that is too long
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else None
    inside = False
    if named is not None and path is not None:
        inside = Path(named).absolute().is_relative_to((Path(path) if is_folder else Path(path).parent).absolute())
    is_writing = inside or (named is None and not is_folder) or isinstance(error, NotADirectoryError) or number in _WRITE_ONLY
    if not is_writing:
        return None
    place = named if named is not None and (is_folder or not inside) else str(path or "a file of this command")
    return _refusal(number, place, needed, is_folder)


@contextmanager
def writing(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """Work that writes `path`, or into it. Raises StorageError where the disk refuses; see `refusal_of`."""
    try:
        yield
    except Exception as error:
        refusal = refusal_of(error, path, needed)
        if refusal is None:
            raise
        raise refusal from error


def check_writable(folder: str | Path) -> None:
    """Raise StorageError when nothing can be written into a folder, or in the nearest one that exists above it.

    Tried, not asked: permission bits say nothing to an administrator, and nothing about a disk mounted read-only.
    """
    if "\0" in str(folder):
        raise StorageError(f"{str(folder)!r} holds a NUL character, which no file name can; set name and run_dir without it")
    try:
        there = nearest(folder)
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(Path(folder).stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _check_length(Path(folder).absolute(), there)
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise _refusal(error.errno, str(folder)) from error


def need_space(folder: str | Path, needed: int, what: str) -> None:
    """Raise StorageError when the disk of a folder has less room than `what` takes at least."""
    free = free_bytes(folder)
    if free < needed:
        raise StorageError(
            f"{what} needs {in_units(needed)} in {folder}, but its disk has {in_units(free)} left; {_ROOM}. "
            "Nothing was begun: the same command then goes on from there"
        )


def free_bytes(path: str | Path) -> int:
    """Bytes that may still be written to the disk of a path, which need not exist."""
    return shutil.disk_usage(nearest(path)).free


def nearest(path: str | Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(path).absolute()
    while not path.is_dir():
        path = path.parent
    return path


def in_units(size: int) -> str:
    """A size for people: `12.3 MB`."""
    value, place = float(size), 0
    while value >= 1000 and place < len(_UNITS) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.1f} {_UNITS[place]}" if place else f"{size} B"


def _check_length(path: Path, there: Path) -> None:
    """Raise OSError for a path that, with the files of a run below it, is longer than the disk of the folder `there` takes."""
    longest, whole = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
    if any(len(os.fsencode(name)) > longest for name in path.parts) or len(os.fsencode(path)) + _BELOW > whole:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _refusal(number: int, place: str, needed: int | None = None, is_folder: bool = False) -> StorageError:
    what, advice = _REFUSALS[number]
    return StorageError(
        f"{place} cannot be written: {what}{_figures(place, number, needed, is_folder)}; {advice}. "
        "Finished parts are kept: the same command then goes on from there"
    )


def _figures(place: str, number: int, needed: int | None, is_folder: bool) -> str:
    """What was needed and what there is, for a disk without room. Work that writes a folder may have filled the disk of
    temporary files instead, so both are told then."""
    if number not in _FULL:
        return ""
    figures = [] if needed is None else [f"{in_units(needed)} needed"]
    figures.append(f"{in_units(free_bytes(place))} left")
    if is_folder:
        temporary = tempfile.gettempdir()
        figures.append(f"{in_units(free_bytes(temporary))} left for temporary files in {temporary}, which TMPDIR names")
    return f" ({', '.join(figures)})"
