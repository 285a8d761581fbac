"""`AioFileSystem`: local files for fsspec, many at once.

fsspec's `LocalFileSystem` reads one file after the other, in the caller's thread. `AsyncFileSystem` runs coroutines on an event loop, and a
synchronous caller pays two thread switches for each call. Here a call of one file (`info`, `cat_file`, `open`) stays what
`LocalFileSystem` makes of it. A call of many files (`cat`, `cat_ranges`, `get`, `put`, `pipe`, `copy`, `rm` of trees) goes to the event
loop once, and all its requests are in flight together.

The loop is fsspec's own thread, or the caller's with ``asynchronous=True``. No file is kept open between two calls.

fsspec finds the class by its entry point: ``fsspec.open("aio:///data/file")``.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

import trio_aio
from trio_aio.integrations import missing
from trio_aio.integrations.batches import DEPTH, by_path, is_special, raise_first, read_parts, result_of, together
from trio_aio.integrations.order import in_groups, in_order, known, nested
from trio_aio.integrations.plan import PROTOCOLS, as_list, path_error, plain, planned
from trio_aio.integrations.streamed import MODES, AioStreamedFile, open_streamed

try:
    import fsspec
    from fsspec.asyn import AsyncFileSystem, sync
    from fsspec.callbacks import DEFAULT_CALLBACK
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.utils import isfilelike
except ImportError as _error:
    raise missing("fsspec", _error) from _error

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from trio_aio.integrations.batches import Range

__all__ = ("AioFileSystem", "AioStreamedFile", "register")


def register(*, clobber: bool = False) -> None:
    """Register `AioFileSystem` with fsspec for "aio", as its entry point does; with `clobber` also for "file" and "local"."""
    for protocol in PROTOCOLS if clobber else PROTOCOLS[:1]:
        fsspec.register_implementation(protocol, AioFileSystem, clobber=True)


class AioFileSystem(LocalFileSystem, AsyncFileSystem):
    """Local files for fsspec. Calls of many files have all their requests in flight together.

    ``AioFileSystem(auto_mkdir=False, asynchronous=False, loop=None)``, or ``fsspec.filesystem("aio")``. auto_mkdir: make the folder of a
    file that is written. asynchronous: the coroutines (`_cat`, `_cat_ranges`, ...) run on the caller's asyncio loop. loop: the loop that
    serves synchronous callers; default: fsspec's. RuntimeError for calls of many files in a child of fork: make a new object there.
    """

    protocol: str | tuple[str, ...] = PROTOCOLS
    # Each synchronous call is defined here or by LocalFileSystem. Mirrored ones would go to the loop for a single file.
    mirror_sync_methods: bool = False
    _intrans: bool

    def __init__(self, auto_mkdir: bool = False, **options: Any) -> None:
        super().__init__(auto_mkdir=auto_mkdir, **options)

    @property
    def loop(self) -> Any:
        """Return the event loop of synchronous calls. RuntimeError in a child of fork, and with ``asynchronous=True``."""
        if self._pid != os.getpid():
            raise RuntimeError("this AioFileSystem was made before a fork, and its event loop is the parent's: make a new one in the child")
        if self._loop is None:
            raise RuntimeError("this AioFileSystem was made with asynchronous=True: await its coroutines (_cat, ...), or make another")
        return self._loop

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        if type(path) is str and path.startswith("/"):
            # As LocalFileSystem's, which looks for each of three protocols first.
            return path.rstrip("/") or "/"
        if type(path) is str and path.startswith("aio:"):
            # Older versions of LocalFileSystem know no protocol but their own.
            path = path.removeprefix("aio:").removeprefix("//")
        return super()._strip_protocol(path)

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"aio://{self._strip_protocol(name)}"

    # ---- contents

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """Return the contents of a file, or those of several by path. As `LocalFileSystem.cat`; several files are read together."""
        if options:
            # What `open` is to do with each file, or which part of it is wanted.
            return super().cat(path, recursive=recursive, on_error=on_error, **options)
        paths = self.expand_path(path, recursive=recursive)
        if not isinstance(path, list) and paths == [self._strip_protocol(path)]:
            return self.cat_file(paths[0])
        found = sync(self.loop, self._read_files, paths) if len(paths) > 1 else [result_of(self.cat_file, paths[0])]
        if on_error == "raise":
            raise_first(data for data in found if not is_special(data))
        # This thread may wait for a device or a FIFO.
        found = [result_of(self.cat_file, name) if is_special(data) else data for name, data in zip(paths, found, strict=True)]
        return by_path(paths, found, on_error)

    async def _cat(self, path: Any, recursive: bool = False, on_error: str = "raise", batch_size: int | None = None, **options: Any) -> Any:
        if options:
            return await super()._cat(path, recursive=recursive, on_error=on_error, batch_size=batch_size, **options)
        paths = await self._expand_path(path, recursive=recursive)
        found = await self._read_all_kinds(paths, on_error)
        if not isinstance(path, list) and paths == [self._strip_protocol(path)]:
            if isinstance(found[0], Exception) and on_error == "raise":
                raise found[0]
            return found[0]
        return by_path(paths, found, on_error)

    async def _read_files(self, paths: list[str]) -> list[bytes | Exception]:
        """Return the contents of files, each error in the place of what it prevented."""
        errors = [path_error(path) for path in paths]
        usable = [path for path, error in zip(paths, errors, strict=True) if error is None]
        found = iter(await trio_aio.read_files(usable, depth=DEPTH, on_error="return"))
        return [next(found) if error is None else error for error in errors]

    async def _read_all_kinds(self, paths: list[str], on_error: str = "return") -> list[bytes | Exception]:
        """Do what `_read_files` does. A thread reads devices and FIFOs, for which it may have to wait."""
        found = await self._read_files(paths)
        if on_error == "raise":
            raise_first(data for data in found if not is_special(data))
        special = [index for index, data in enumerate(found) if is_special(data)]
        calls = [(result_of, self.cat_file, paths[index]) for index in special]
        for index, data in zip(special, await together(anyio.to_thread.run_sync, calls), strict=True):
            found[index] = data
        return found

    async def _read_parts(self, path: str, ranges: list[Range], max_gap: int) -> list[bytes | Exception]:
        """Return ranges of a file. A thread reads those of a device or a FIFO."""
        try:
            return await read_parts(path, ranges, max_gap)
        except io.UnsupportedOperation:
            calls = [(result_of, self.cat_file, path, start, end) for start, end in ranges]
            return await together(anyio.to_thread.run_sync, calls)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        path = self._strip_protocol(path)
        if options:
            return await anyio.to_thread.run_sync(partial(self.cat_file, path, start, end, **options))
        [data] = await self._read_parts(path, [(start, end)], 0)
        if isinstance(data, Exception):
            raise data
        return data

    def cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return", **options: Any
    ) -> list[Any]:
        """Return ranges of bytes of files, in the order of `paths`. The ranges of a file are read together, and the files too.

        starts, ends: bytes; one for all, or a list. None is the beginning or the end, and a negative number counts from the end, as in a
        slice. max_gap: ranges of a file that are at most so far apart share a request. on_error: "return" has an exception in the place
        of what it prevented, "raise" raises the first.
        """
        batch_size = options.pop("batch_size", None)
        if options or (isinstance(paths, list) and len(paths) == 1):
            found: list[Any] = super().cat_ranges(paths, starts, ends, on_error=on_error, **options)
        else:
            found = sync(self.loop, self._cat_ranges, paths, starts, ends, max_gap, batch_size, on_error)
        return found

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **options: Any,
    ) -> list[Any]:
        if options:
            return await super()._cat_ranges(paths, starts, ends, None, batch_size, on_error, **options)
        if not isinstance(paths, list):
            raise TypeError(f"paths must be a list, not {type(paths).__name__}")
        ranges = list(zip(as_list(starts, len(paths), "starts"), as_list(ends, len(paths), "ends"), strict=True))
        wanted: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            wanted.setdefault(self._strip_protocol(path), []).append(index)
        whole = [
            path for path, indices in wanted.items() if len(indices) == 1 and not ranges[indices[0]][0] and ranges[indices[0]][1] is None
        ]
        results: list[Any] = [None] * len(paths)
        for path, data in zip(whole, await self._read_all_kinds(whole), strict=True):
            [index] = wanted.pop(path)
            results[index] = data
        parts = [(path, [ranges[index] for index in indices], max_gap or 0) for path, indices in wanted.items()]
        for indices, found in zip(wanted.values(), await together(self._read_parts, parts), strict=True):
            for position, index in enumerate(indices):
                results[index] = found if isinstance(found, Exception) else found[position]
        if on_error != "return":
            raise_first(results)
        return results

    def pipe(self, path: Any, value: Any = None, **options: Any) -> None:
        """Write `value` to a file, or each value of a dict to its path. As `LocalFileSystem.pipe`; several files are written together."""
        # In a transaction, what `open` writes is kept until its end.
        if isinstance(path, dict) and len(path) > 1 and not self._intrans and not options.keys() - {"mode"}:
            sync(self.loop, self._pipe, path, **options)
        else:
            super().pipe(path, value, **options)

    async def _pipe(self, path: Any, value: Any = None, batch_size: int | None = None, **options: Any) -> None:
        values = [(self._strip_protocol(name), data) for name, data in (path.items() if isinstance(path, dict) else [(path, value)])]
        # Of a file that has several names here, the last value counts.
        files = await known([name for name, _ in values])
        groups = in_groups([()] * len(files), [file.names for file in files])
        await in_order(partial(self._pipe_file, **options), values, groups)

    async def _pipe_file(self, path: str, value: Buffer, mode: str = "overwrite", **options: Any) -> None:
        path = self._strip_protocol(path)
        if options:
            await anyio.to_thread.run_sync(partial(self.pipe_file, path, value, mode=mode, **options))
            return
        await self._make_parent(path)
        try:
            await trio_aio.write_bytes(path, value, exclusive=mode == "create")
        except io.UnsupportedOperation:
            # A device or a FIFO. A thread may wait for it.
            await anyio.to_thread.run_sync(partial(self.pipe_file, path, value, mode=mode))

    def _open(self, path: str, mode: str = "rb", *arguments: Any, autocommit: bool = True, **options: Any) -> Any:
        if not autocommit and ("a" in mode or "x" in mode):
            # LocalFileSystem would write it at once, and at the end of the transaction lose the files after it.
            raise NotImplementedError(f"{path}: what is written with mode {mode!r} cannot be kept until the end of a transaction: use 'wb'")
        return super()._open(path, mode, *arguments, autocommit=autocommit, **options)

    async def open_async(self, path: str, mode: str = "rb", **options: Any) -> AioStreamedFile:
        """Open a file whose `read` and `write` are coroutines. mode: "rb", "wb", "ab" or "xb".

        ValueError for text and compression, as with other filesystems; NotImplementedError for another mode, and ``autocommit=False``.
        OSError of open(2). What `options` say of blocks and caches has no effect.
        """
        if "b" not in mode or options.get("compression"):
            raise ValueError(f"open_async opens binary files without compression, not mode {mode!r}, {options.get('compression')!r}")
        if mode not in MODES or not options.get("autocommit", True):
            raise NotImplementedError(f"open_async has the modes {', '.join(MODES)}, without transactions, not {mode!r}")
        path = self._strip_protocol(path)
        if mode != "rb":
            await self._make_parent(path)
        return await open_streamed(self, path, mode)

    # ---- copies

    def get(
        self, rpath: Any, lpath: Any, recursive: bool = False, callback: Any = DEFAULT_CALLBACK, maxdepth: Any = None, **options: Any
    ) -> None:
        """Copy files to paths outside of fsspec. As `LocalFileSystem.get`; several files are copied together."""
        self._copy_pairs(partial(LocalFileSystem.get, recursive=recursive, maxdepth=maxdepth, **options), rpath, lpath, callback)

    async def _get(self, rpath: Any, lpath: Any, recursive: bool = False, callback: Any = DEFAULT_CALLBACK, **options: Any) -> None:
        await self._copy_pairs_async(partial(LocalFileSystem.get, recursive=recursive, **plain(options)), rpath, lpath, callback)

    def put(
        self, lpath: Any, rpath: Any, recursive: bool = False, callback: Any = DEFAULT_CALLBACK, maxdepth: Any = None, **options: Any
    ) -> None:
        """Copy files from paths outside of fsspec. As `LocalFileSystem.put`; several files are copied together."""
        self._copy_pairs(partial(LocalFileSystem.put, recursive=recursive, maxdepth=maxdepth, **options), lpath, rpath, callback)

    async def _put(self, lpath: Any, rpath: Any, recursive: bool = False, callback: Any = DEFAULT_CALLBACK, **options: Any) -> None:
        await self._copy_pairs_async(partial(LocalFileSystem.put, recursive=recursive, **plain(options)), lpath, rpath, callback)

    def copy(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: Any = None, on_error: Any = None, **options: Any) -> None:
        """Copy files. As `LocalFileSystem.copy`; several files are copied together."""
        ignore = recursive if on_error is None else on_error != "raise"
        self._copy_pairs(partial(LocalFileSystem.copy, recursive=recursive, maxdepth=maxdepth, **options), path1, path2, ignore=ignore)

    async def _copy(self, path1: Any, path2: Any, recursive: bool = False, on_error: Any = None, **options: Any) -> None:
        ignore = recursive if on_error is None else on_error != "raise"
        plan = partial(LocalFileSystem.copy, recursive=recursive, **plain(options))
        await self._copy_pairs_async(plan, path1, path2, ignore=ignore)

    def _copy_pairs(
        self, plan: Callable[..., None], sources: Any, targets: Any, callback: Any = DEFAULT_CALLBACK, ignore: bool = False
    ) -> None:
        """Copy what `plan`, a call of LocalFileSystem, would copy: one file in this thread, several on the loop."""
        pairs, options = planned(plan, sources, targets)
        if len(pairs) > 1 and not options and not any(isfilelike(target) for _, target in pairs):
            sync(self.loop, self._copy_all, pairs, callback, ignore)
            return
        callback.set_size(len(pairs))
        for source, target in callback.wrap(pairs):
            with callback.branched(source, target) as child:
                try:
                    self.get_file(source, target, callback=child, **options)
                except FileNotFoundError:
                    if not ignore:
                        raise

    async def _copy_pairs_async(
        self, plan: Callable[..., None], sources: Any, targets: Any, callback: Any = DEFAULT_CALLBACK, ignore: bool = False
    ) -> None:
        pairs, options = await anyio.to_thread.run_sync(planned, plan, sources, targets)
        await self._copy_all(pairs, callback, ignore, **options)

    async def _copy_all(self, pairs: list[tuple[Any, Any]], callback: Any, ignore: bool, **options: Any) -> None:
        async def copy_one(source: Any, target: Any) -> None:
            copy = self._get_file if isfilelike(target) else self._put_file
            with callback.branched(source, target) as child:
                try:
                    await copy(source, target, callback=child, **options)
                except FileNotFoundError:
                    if not ignore:
                        raise
            callback.relative_update(1)

        callback.set_size(len(pairs))
        sources = await known([self._strip_protocol(source) for source, _ in pairs])
        # A folder has to be there before what is copied into it.
        folders = [index for index, source in enumerate(sources) if source.status is not None and stat.S_ISDIR(source.status.st_mode)]
        await in_order(copy_one, pairs, [folders])
        # Of a target that is named twice, the last source counts; and a file that is a target too is copied in its turn.
        files = sorted({*range(len(pairs))} - {*folders})
        named = iter(await known([self._strip_protocol(target) for _, target in pairs if not isfilelike(target)]))
        written = [(id(target),) if isfilelike(target) else next(named).names for _, target in pairs]
        groups = in_groups([sources[index].names for index in files], [written[index] for index in files])
        await in_order(copy_one, [pairs[index] for index in files], groups)

    async def _cp_file(self, path1: str, path2: str, *, exclusive: bool = False, **options: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        await self._make_parent(path2)
        try:
            kind = (await trio_aio.os.stat(path1)).st_mode
        except (OSError, ValueError):
            kind = 0
        if stat.S_ISDIR(kind):
            await trio_aio.os.makedirs(path2, exist_ok=True)
            return
        if not stat.S_ISREG(kind):
            raise FileNotFoundError(path1)  # as LocalFileSystem says of all other sources
        if exclusive or not await self._is_written_in_place(path2):
            try:
                await trio_aio.copy_file(path1, path2, exclusive=exclusive)
                return
            except io.UnsupportedOperation:
                pass  # LocalFileSystem writes to a device
            except OSError as error:
                # A folder where nothing may be made, or a file that is mounted.
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY) or not await trio_aio.os.path.exists(path2):
                    raise
        await anyio.to_thread.run_sync(LocalFileSystem.cp_file, self, path1, path2)

    async def _is_written_in_place(self, path: str) -> bool:
        """Return whether a file is written in place: another user's, which a new one would not be, or one that may not be written."""
        try:
            owner = (await trio_aio.os.stat(path)).st_uid
        except OSError:
            return False
        return (os.geteuid() != 0 and owner != os.geteuid()) or not await trio_aio.os.access(path, os.W_OK)

    async def _get_file(self, rpath: str, lpath: Any, **options: Any) -> None:
        if isfilelike(lpath):
            await anyio.to_thread.run_sync(partial(self.get_file, rpath, lpath))
        else:
            await self._cp_file(rpath, lpath)

    async def _put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **options: Any) -> None:
        await self._cp_file(lpath, rpath, exclusive=mode == "create")

    # ---- removal

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with `recursive` folders. As `LocalFileSystem.rm`; with `recursive`, several are removed together."""
        # A file is removed in less time than its request takes on the way to a worker and back. A tree is not.
        if recursive and isinstance(path, list) and len(path) > 1:
            sync(self.loop, self._rm, path, recursive=True)
        else:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)

    async def _rm(
        self, path: Any, recursive: bool = False, batch_size: int | None = None, maxdepth: int | None = None, **options: Any
    ) -> None:
        paths = [self._strip_protocol(name) for name in (path if isinstance(path, list) else [path])]
        await in_order(self._remove, [(name, recursive) for name in paths], nested(paths))

    async def _remove(self, path: str, recursive: bool) -> None:
        try:
            await trio_aio.os.unlink(path)
            return
        except (IsADirectoryError, PermissionError):
            if not await trio_aio.os.path.isdir(path) or await trio_aio.os.path.islink(path):
                raise
        if not recursive:
            raise ValueError("Cannot delete directory, set recursive=True")
        if os.path.normpath(path) == os.getcwd():  # noqa: ASYNC240 - it looks at no file
            raise ValueError("Cannot delete current working directory")
        await trio_aio.remove_tree(path)

    async def _rm_file(self, path: str, **options: Any) -> None:
        await trio_aio.os.unlink(self._strip_protocol(path))

    # ---- names

    async def _info(self, path: Any, **options: Any) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(self.info, path)

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        return await anyio.to_thread.run_sync(partial(self.ls, path, detail=detail))

    async def _exists(self, path: str, **options: Any) -> bool:
        return await trio_aio.os.path.exists(self._strip_protocol(path))

    async def _isfile(self, path: str) -> bool:
        return await trio_aio.os.path.isfile(self._strip_protocol(path))

    async def _isdir(self, path: str) -> bool:
        return await trio_aio.os.path.isdir(self._strip_protocol(path))

    async def _size(self, path: str) -> int:
        return await trio_aio.os.path.getsize(self._strip_protocol(path))

    async def _mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        await anyio.to_thread.run_sync(partial(self.mkdir, path, create_parents=create_parents, **options))

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await trio_aio.os.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    async def _make_parent(self, path: str) -> None:
        if self.auto_mkdir:
            await trio_aio.os.makedirs(self._parent(path), exist_ok=True)
