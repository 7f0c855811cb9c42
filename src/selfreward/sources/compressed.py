"""Bytes of a file, plain, gzip or zstd (told by content), with every failure to read as one DataError."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from selfreward.errors import DataError
from selfreward.texts import one_line

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 16


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a zstd file of any number of frames. The library's own reader takes a file that was cut off
    for one that has ended; this one raises EOFError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._in_frame = False
        self._raw = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._ready:
            raw = self._raw or self._file.read(_CHUNK)
            if not raw:
                if self._in_frame:
                    raise EOFError("the zstd stream is cut off")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(raw)
            self._in_frame, self._raw = not self._frame.eof, self._frame.unused_data
        size = min(len(view), len(self._ready))
        view[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed. Use it inside `reading`."""
    file = path.open("rb")
    head = file.read(4)
    file.seek(0)
    if head.startswith(GZIP):
        file.close()
        return cast(BinaryIO, gzip.open(path, "rb"))
    return io.BufferedReader(_ZstdFile(file), _CHUNK) if head == ZSTD else file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what can go wrong while a file's bytes are read into a DataError that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not text in UTF-8 (byte 0x{byte:02x}: {error.reason}); convert the file to UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}; the file is damaged or cut off") from error
