"""`read_files`: many small files. A worker reads several in one request, into one memory.

How many files share a request is bounded, so that several workers have something to do; and how many bytes are read and not taken is
bounded too. Of each request, what did not fit into its memory is asked for again; a file that does not fit alone is read like any other.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import AsyncIterable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from trio_aio._arguments import checked_size
from trio_aio._bulk.waiting import checked_depth, wait_for
from trio_aio._context.shared import given_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import os_error
from trio_aio._files import whole
from trio_aio._memory.exports import hold, private_memory
from trio_aio._names.calls import all_encoded
from trio_aio._names.listing import Listing
from trio_aio._requests.contents import ReadMany
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._memory.exports import Export
    from trio_aio._names.calls import NamePath

__all__ = ("FileContents", "read_files")

# Files of one request at most, and the memory that they share.
TOGETHER = 32
MEMORY = 1 << 20

Found = tuple[Any, bytes | OSError]


class _Part:
    """Files that one request reads."""

    def __init__(self, paths: list[Any], memory: Export) -> None:
        self.paths: list[Any] = paths
        self.contents: list[Any] = []  # of the first of them, once they are read; a negative number: an errno
        self.is_read: bool = False
        self.has_errors: bool = False  # some of the contents are, or were, numbers
        self.request: ReadMany = ReadMany(Descriptor(AT_FDCWD, paths[0]), all_encoded(paths), memory)

    def served(self) -> list[Any]:
        """Return what the request says of the first of its files: at least of one."""
        result = self.request.result
        served = self.request.files() if result >= 0 else []
        if served:
            return served
        # A request that failed as a whole says nothing of several files: then each is read alone.
        return [result or b""] if len(self.paths) == 1 else [-errno.EFBIG] * len(self.paths)


class FileContents(Listing[Found]):
    """What `read_files` returns: ``(path, data)`` in the order of the paths. ``await`` returns the list of data."""

    def __init__(self, paths: Any, depth: int, max_bytes: int, on_error: str, core: Core | None) -> None:
        self._paths: Iterator[Any] | AsyncIterator[Any] = aiter(paths) if isinstance(paths, AsyncIterable) else iter(paths)
        self._asynchronous: bool = isinstance(paths, AsyncIterable)
        self._together: int = max(1, min(TOGETHER, depth // 2))
        self._most: int = max(1, min(depth // self._together, max_bytes // MEMORY))
        self._memory: int = min(MEMORY, max_bytes)
        self._raises: bool = on_error == "raise"
        self._may_raise: bool = False  # there are errors in what was read last
        self._parts: deque[_Part] = deque()
        # Memory of requests that have ended. New memory would cost a page fault for every 4 KiB.
        self._free: list[Export] = []
        self._exhausted: bool = False
        self._cut_off: bool = False  # an exception has ended the generator of the paths
        # What was read and could not be yielded, because an error came before it.
        self._found: deque[Found] = deque()
        self._next: list[Any] = []  # paths of the next request
        super().__init__(core)

    def __await__(self) -> Any:
        self._used = True
        return self._data().__await__()

    async def _data(self) -> list[bytes | OSError]:
        return [data for _, data in await self._all()]

    async def _more(self, core: Core) -> list[Found] | None:
        # An error of a file does not end the iteration.
        if not self._found:
            try:
                batch = await self._next_batch(core)
            except Exception:  # not a cancellation: after one it can continue
                self._end()
                raise
            if batch is None:
                self._end()
                return None
            if not self._may_raise:
                return batch
            self._found.extend(batch)
        batch = []
        while self._found:
            data = self._found[0][1]
            if isinstance(data, OSError):
                if batch:
                    break
                self._found.popleft()
                raise data
            batch.append(self._found.popleft())
        return batch

    async def _next_batch(self, core: Core) -> list[Found] | None:
        await self._fill(core)
        backend = core.backend
        assert backend is not None
        if not self._parts or self._ended:
            await backend.cancel_shielded_checkpoint()
            return None
        part = self._parts[0]
        if not part.is_read:
            await wait_for(backend, part.request)
            contents = part.served()
            part.has_errors = int in map(type, contents)
            part.contents, part.is_read = contents, True
            self._free.append(part.request.data)
        if part.has_errors:
            for at, data in enumerate(part.contents):
                if isinstance(data, int):
                    part.contents[at] = await self._judged(core, part.paths[at], data)
        self._may_raise = self._raises and part.has_errors
        self._parts.popleft()
        found: list[Found] = list(zip(part.paths, part.contents, strict=False))
        left = part.paths[len(found) :]
        if left:
            self._parts.appendleft(self._submitted(core, left))
        return found

    async def _judged(self, core: Core, path: Any, data: int) -> bytes | OSError:
        """Return the error of a file, or what `read_bytes` says of a long file, and of what is no file."""
        if data not in (-errno.EFBIG, -errno.EOPNOTSUPP):
            return os_error(data, path)
        try:
            return await whole.read_bytes(path, context=core.context)
        except OSError as error:
            return error

    async def _fill(self, core: Core) -> None:
        """Start requests until as many files are being read as may be."""
        core.check()
        backend = core.backend
        assert backend is not None
        await backend.checkpoint_if_cancelled()
        # A test's fault is for one file.
        together = self._together if core.check().hook is None else 1
        while len(self._parts) < self._most and not self._exhausted:
            paths = self._next
            if self._asynchronous:
                while len(paths) < together and not self._exhausted:
                    try:
                        paths.append(await self._next_path())
                    except StopAsyncIteration:
                        self._exhausted = True
                    if self._ended:  # closed by another task meanwhile
                        return
            else:
                paths.extend(islice(self._paths, together - len(paths)))  # type: ignore[arg-type]
                self._exhausted = len(paths) < together
            if paths:
                self._parts.append(self._submitted(core, paths))
                self._next = []

    async def _next_path(self) -> Any:
        """Return the next path of an asynchronous iterator. RuntimeError if a cancellation has ended it: it may have had more."""
        if self._cut_off:
            raise RuntimeError("the generator of the paths was cancelled, which has ended it: use one that survives that, or a list")
        paths: Any = self._paths
        try:
            return await anext(paths)
        except StopAsyncIteration:
            raise
        except BaseException:
            self._cut_off = getattr(paths, "ag_frame", paths) is None
            raise

    def _submitted(self, core: Core, paths: list[Any]) -> _Part:
        part = _Part(paths, self._free.pop() if self._free else hold(private_memory(self._memory)))
        core.check().submit(part.request)
        return part

    def _release(self) -> None:
        engine = None if self._given is None else self._given.engine
        if engine is not None:
            for part in self._parts:
                if not part.request.finished:
                    engine.drops.add(None, part.request)
        self._parts.clear()
        self._found.clear()


def read_files(
    paths: Iterable[NamePath] | AsyncIterable[NamePath],
    *,
    depth: int = 64,
    max_bytes: int = 64 << 20,
    on_error: Literal["raise", "return"] = "raise",
    context: AIOContext | None = None,
) -> FileContents:
    """Read many files. ``async for path, data in read_files(paths)``, or ``await`` for the list of data. open(2), read(2), close(2).

    paths: taken as needed; the order of the results is theirs. At most `depth` files and `max_bytes` are read and not yet taken; a larger
    file is read alone. Several files share a request. on_error: "raise" raises an OSError at its turn, and the iteration can continue;
    "return" yields it in place of data. ValueError for another, or a number below 1. A step that was cancelled can be made again, unless
    that has ended a generator of the paths: RuntimeError.
    """
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error must be 'raise' or 'return', not {on_error!r}")
    if checked_size(max_bytes, "max_bytes") < 1:
        raise ValueError("max_bytes must be at least 1, not 0")
    return FileContents(paths, checked_depth(depth), max_bytes, on_error, given_core(context))
