"""One process a run: a lock on run.log, and run.lock beside it, which tells who holds it.

The lock on run.log is the truth: the system gives it free when its process ends, however it ends. run.lock holds the
holder's process id, host and start, for people and for where the lock cannot tell: another host (some network file systems
know no locks between hosts), and file systems that have no locks at all. There run.lock alone decides: a holder on this
host counts as gone when its process has ended or its id belongs to a process that began at another time; one on another
host is never judged. Nothing here looks at the wall clock: `started` is for people, `start` counts since the boot.
"""

import errno
import json
import os
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from selfreward.errors import UsageError

LOCK_FILE = "run.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that works in a run. `start` is its start in ticks since the boot `boot`; both empty where nobody tells."""

    pid: int
    host: str
    started: str
    start: str = ""
    boot: str = ""

    def __str__(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host} (since {self.started})"


class RunLock:
    """The lock of one run, held from `take` to `release` or to the end of the process."""

    def __init__(self, log: Path) -> None:
        self.path = log.with_name(LOCK_FILE)
        self.stale: str | None = None
        """What was said by a lock file that nobody held any more, and why it counts as stale; None without one."""
        self.has_system_lock = True
        self._folder = log.parent
        self._is_ours = False

    def take(self, descriptor: int) -> None:
        """Lock the open log. Raises UsageError when another process has it, or when that cannot be told."""
        try:
            lock(descriptor)
        except OSError as error:
            if error.errno in _TAKEN:
                raise UsageError(_taken(self._folder, read_holder(self.path))) from error
            self.has_system_lock = False  # a file system without locks: run.lock alone guards
        found = read_holder(self.path)  # behind the lock: a holder that ends removes its file before it lets the lock go
        if sys.platform == "win32":
            self.has_system_lock = False
        if found is not None and _is_same(found, this_process()):
            return  # a second look of this process into its own run: whoever came first keeps the file
        if found is not None:
            self._take_over(found)
        self._write()

    def _take_over(self, found: Holder) -> None:
        """Remove a lock file whose holder is gone. Raises UsageError for one that is not, or may not be."""
        is_here, why = found.host == socket.gethostname(), why_gone(found)
        if why is None and is_here and self.has_system_lock:
            why = "it holds no lock on the log"
        if why is None:
            doubt = f". Whether it still does cannot be told from here: if it does not, delete {self.path}"
            raise UsageError(_taken(self._folder, found) + ("" if is_here else doubt))
        aside = self.path.with_name(f".tmp-{os.getpid()}-{LOCK_FILE}")  # a name that the next run clears
        self.path.replace(aside)
        now = read_holder(aside)
        if now != found:  # another process took it over in the same moment: give it back
            aside.replace(self.path)
            raise UsageError(_taken(self._folder, now))
        aside.unlink()
        self.stale = f"{found}: {why}"

    def _write(self) -> None:
        try:
            with self.path.open("x", encoding="utf-8") as file:  # x: of two processes that begin at once, one makes it
                json.dump(asdict(this_process()), file)
        except FileExistsError as error:
            raise UsageError(_taken(self._folder, read_holder(self.path))) from error
        self._is_ours = True

    def release(self) -> None:
        """Remove run.lock when this lock made it; closing the log gives the lock on it free."""
        if self._is_ours:
            self.path.unlink(missing_ok=True)
            self._is_ours = False


def lock(descriptor: int) -> None:
    """Lock an open file against other processes until it is closed or this process ends. Raises OSError when taken."""
    if sys.platform != "win32":  # Windows has no such lock on a file that stays readable
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def running(log: Path) -> Holder | None:
    """Who works in a run now, by its log, without touching the lock; None when nobody does.

    Not for the process that holds the lock: opening and closing the log would give it free.
    """
    holder = read_holder(log.with_name(LOCK_FILE))
    pid = _locked_by(log)
    if pid is None:  # the system cannot say
        return holder if holder is not None and why_gone(holder) is None else None
    if pid == 0:
        elsewhere = holder is not None and holder.host != socket.gethostname()
        return holder if elsewhere else None
    is_known = holder is not None and pid in (holder.pid, -1)
    return holder if is_known else Holder(pid, socket.gethostname(), "unknown")


def read_holder(path: Path) -> Holder | None:
    """Who a lock file names; None without one, or where its writing was cut off."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Holder(int(fields["pid"]), *(str(fields[name]) for name in ("host", "started", "start", "boot")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Holder(0, socket.gethostname(), "unknown")  # cut off in the moment of writing


def why_gone(holder: Holder) -> str | None:
    """Why a holder does not work any more, or None when it does or nobody can tell from here."""
    if holder.host != socket.gethostname():
        return None
    if holder.pid <= 0:
        return "its lock file was cut off"
    if holder.boot and _boot() and holder.boot != _boot():
        return "the machine was started anew since"
    if sys.platform == "win32":
        return None  # asking after a process there would end it
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return "that process has ended"
    except PermissionError:
        pass  # alive, somebody else's
    start = _start(holder.pid)
    if holder.start and start and start != holder.start:
        return "that process id belongs to another process now"
    return None


def this_process() -> Holder:
    """This process as a holder."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), started, _start(os.getpid()), _boot())


def _is_same(one: Holder, other: Holder) -> bool:
    return (one.pid, one.host, one.start, one.boot) == (other.pid, other.host, other.start, other.boot)


def _taken(folder: Path, holder: Holder | None) -> str:
    who = f": {holder}" if holder is not None and holder.pid > 0 else ""
    return f"another process is working in {folder}{who}; wait for it, or set another `name`"


def _start(pid: int) -> str:
    """When a process began, in ticks since the boot; empty where the system does not say."""
    try:
        # The name, the second field, may hold blanks and brackets; the start is the 20th field behind it.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _locked_by(log: Path) -> int | None:
    """Id of the process that holds the lock on a log; 0 for none, -1 for one that cannot be seen from here (in another
    container), None where the system cannot say."""
    if sys.platform != "linux":
        return None
    import fcntl

    layout = "hhqqi4x"  # struct flock: type, whence, start, length, process
    try:
        with log.open("rb") as file:
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(file.fileno(), fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return 0 if kind == fcntl.F_UNLCK else int(pid) if pid > 0 else -1
