"""`OpenedFile`: what an open file is, and what it was opened for. `PositionalFile` adds the calls that read and write."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any
from weakref import ref

from trio_aio._arguments import checked_offset
from trio_aio._errors import NotCopied, shown
from trio_aio._files.blocking import BlockingFile
from trio_aio._files.misuse import Misuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_aio._context.core import Core
    from trio_aio._engine.descriptor import Alignment, Descriptor

__all__ = ("OpenedFile",)


class OpenedFile(Misuse, NotCopied):
    """An open file, and none of its calls."""

    _core: Core
    _descriptor: Descriptor
    _mode: str
    _closed: bool
    _readable: bool
    _writable: bool
    _limiter: Any = None
    # What `blocking` has returned.
    _views: Sequence[ref[BlockingFile]] = ()
    _wrapped: BlockingFile | None = None

    @property
    def name(self) -> Any:
        """The path as it was given, or the descriptor."""
        return self._descriptor.name

    @property
    def mode(self) -> str:
        """The mode as ``open()`` shows it: "rb", "rb+", "wb", "xb", "ab" and so on."""
        return self._mode

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    @property
    def direct(self) -> bool:
        """Whether the descriptor has O_DIRECT and the filesystem honours it."""
        return self._descriptor.direct

    @property
    def alignment(self) -> Alignment:
        """What direct I/O on it requires, bytes: `offset`, also for sizes, and `memory`. 1 and 1 for a buffered file."""
        return self._descriptor.alignment

    @property
    def limiter(self) -> Any:
        """The limiter that `open_file` was called with, or None. It has no effect: no call of this file takes a thread."""
        return self._limiter

    def fileno(self) -> int:
        """Return the descriptor. It belongs to the file: do not close it."""
        self._check_open()
        return self._descriptor.fd

    def readable(self) -> bool:
        """Return whether it was opened for reading."""
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        """Return whether it was opened for writing."""
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        """Return True: regular files and block devices are seekable."""
        self._check_open()
        return True

    def isatty(self) -> bool:
        """Return False."""
        self._check_open()
        return False

    def __repr__(self) -> str:
        return self._shown(" closed" if self._closed else "")

    def _shown(self, state: str = "") -> str:
        return f"<trio_aio.{type(self).__name__} name={self.name!r} mode={self._mode!r}{state}>"

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file")

    def _check_readable(self) -> None:
        self._check_open()
        if not self._readable:
            name = shown(self.name)
            raise io.UnsupportedOperation(f"{name!r} is not open for reading, its mode is {self._mode!r}: open it with 'rb' or 'r+b'")

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            name = shown(self.name)
            raise io.UnsupportedOperation(f"{name!r} is not open for writing, its mode is {self._mode!r}: open it with 'r+b' or 'wb'")

    def blocking(self, position: int = 0, *, allow_loop: bool = False) -> BlockingFile:
        """Return a synchronous file on the same open file, for code that runs in a thread: ``zipfile``, ``csv``, PIL and so on.

        position: bytes; where its own cursor starts. It moves no other cursor. allow_loop: its calls may be made on the event loop's thread
        too, which they block; otherwise they raise RuntimeError there. `aclose` waits for calls in progress; later ones raise ValueError.
        """
        self._check_open()
        view = BlockingFile(self, self._mode, checked_offset(position), allow_loop=allow_loop)
        self._views = [*(known for known in self._views if known() is not None), ref(view)]
        return view
