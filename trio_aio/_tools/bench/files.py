"""The files of the loads. A file is made when a row first needs it, in a folder that is removed at the end."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from trio_aio._tools.bench.contenders.contender import File
    from trio_aio._tools.bench.rows import Sizes

__all__ = ("Files",)

# 64 bytes, as rows of lines assume.
_LINE = b"the quick brown fox jumps over the lazy dog, number %08d .....\n"
_BLOCK = 1 << 20


class Files:
    """A folder of files. Use it with `with`."""

    def __init__(self, folder: str, sizes: Sizes) -> None:
        self._folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="trio-aio-bench-", dir=folder)
        self._sizes: Sizes = sizes

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._folder.cleanup()

    def path(self, file: File) -> str:
        """Return the path of a file, which is on the disk by then. "none" is a path without a file."""
        path = os.path.join(self._folder.name, file.replace(" ", "-"))
        if file != "none" and not os.path.exists(path):
            self._make(path, file)
        return path

    def _make(self, path: str, file: File) -> None:
        size = self._sizes.of(file)
        with open(path, "wb") as made:
            if "sparse" in file:
                made.truncate(size)
            elif file == "lines":
                for number in range(size // 64):
                    made.write(_LINE % number)
            else:
                # No two blocks are equal: some devices do not store zeros, or what they have stored before.
                random = os.urandom(_BLOCK)
                for number in range(size // _BLOCK):
                    made.write(number.to_bytes(8, "little") + random[8:])
            made.flush()
            os.fsync(made.fileno())
            if file == "overwritten":
                # A direct write removes cached pages, which only the first ones would pay for.
                os.posix_fadvise(made.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def warm(self, path: str) -> None:
        """Read a file into the page cache."""
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(_BLOCK)
            while file.readinto(buffer):
                pass

    def settle(self) -> None:
        """Write all dirty pages to the disk, so that the next contender does not pay for them."""
        os.sync()
