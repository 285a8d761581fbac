"""The files that are measured with: made when a row first needs one, in a folder that goes away at the end."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from trio_aio._bench.contenders import File
    from trio_aio._bench.rows import Sizes

__all__ = ("Files",)

_LINE = b"the quick brown fox jumps over the lazy dog, number %08d .....\n"  # 64 bytes
_BLOCK = 1 << 20


class Files:
    """A folder of files, under ``with``."""

    def __init__(self, folder: str, sizes: Sizes) -> None:
        self._folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="trio-aio-bench-", dir=folder)
        self._sizes: Sizes = sizes

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._folder.cleanup()

    def path(self, file: File) -> str:
        """Give a file's path, on the disk and in the page cache."""
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
                # Different everywhere: what is all zeros, or the same again and again, some devices do not store.
                random = os.urandom(_BLOCK)
                for number in range(size // _BLOCK):
                    made.write(number.to_bytes(8, "little") + random[8:])
            made.flush()
            os.fsync(made.fileno())

    def warm(self, path: str) -> None:
        """Read a file, so that it is in the page cache."""
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(_BLOCK)
            while file.readinto(buffer):
                pass

    def settle(self) -> None:
        """Have everything that was written on the disk, so that the next contender does not pay for it."""
        os.sync()
