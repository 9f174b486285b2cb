"""Files packed by gzip or zstd as streams of the bytes within.

Several packed parts one after the other count as one, as `cat a.gz b.gz` makes them. A file that is cut off or damaged
raises Damaged where the damage is reached; the libraries' own readers let a cut-off zstd file end as if it were whole.
"""

import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from metier.core.errors import MissingExtra

PACKINGS = {".gz": "gzip", ".zst": "zstd"}
PIECE = 2**14
"""Packed bytes taken at a time: a zstd block may hold 30,000 times as much as it takes, and all of it is unpacked."""


class Damaged(OSError):
    """A packed file that is cut off, or is not what its suffix says. line: where, once it is known."""

    line: int | None = None


def unpacked(file: BinaryIO, suffix: str) -> BinaryIO:
    """The bytes in `file`: as they are, or unpacked where the suffix (lower case) is one of PACKINGS."""
    if suffix not in PACKINGS:
        return file
    make, errors = _gzip() if suffix == ".gz" else _zstd()
    # a BufferedReader is a BinaryIO in all but name
    return cast(BinaryIO, io.BufferedReader(_Unpacking(file, PACKINGS[suffix], make, errors), 2**18))


def _gzip() -> tuple[Callable[[], Any], type[Exception]]:
    return lambda: zlib.decompressobj(wbits=31), zlib.error


def _zstd() -> tuple[Callable[[], Any], type[Exception]]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstandard", "formats", needed_by="a file packed by zstd") from None
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


class _Unpacking(io.RawIOBase):
    """One packed part after the other. make: a new unpacker with `decompress`, `eof` and `unused_data`."""

    def __init__(self, file: BinaryIO, name: str, make: Callable[[], Any], errors: type[Exception]) -> None:
        self._file = file
        self._name = name
        self._make = make
        self._errors = errors
        self._part: Any = None
        self._ready = memoryview(b"")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            if not self._unpack():
                return 0
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> bool:
        """Unpack another piece; False at the end of the file."""
        packed = self._rest or self._file.read(PIECE)
        self._rest = b""
        if self._part is None:
            while not (packed := packed.lstrip(b"\0")):  # tape blocks are filled up with zeros
                packed = self._file.read(PIECE)
                if not packed:
                    return False
            self._part = self._make()
        if not packed:
            raise Damaged(f"the {self._name} file is cut off")
        try:
            self._ready = memoryview(self._part.decompress(packed))
        except self._errors as error:
            raise Damaged(f"the {self._name} file is damaged, or is none ({error})") from error
        if self._part.eof:
            self._rest = self._part.unused_data
            self._part = None
        return True
