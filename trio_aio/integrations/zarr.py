"""`AioStore`: zarr's arrays in a local folder, read and written by trio_aio.

zarr's `LocalStore` sends each chunk to a thread. Here a chunk is one request, the chunks of a selection are read together, and the ranges
of a shard are one batch. What is set appears whole, and the synchronous calls, which zarr's fused pipeline makes in threads of its own, are
those of `LocalStore`. So are the listings.

A range that ends beyond the value is shorter, and a suffix of 0 bytes has none, as with `LocalStore`. zarr needs Python 3.12.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any

import anyio

import trio_aio
from trio_aio.integrations import missing
from trio_aio.integrations.batches import DEPTH, read_parts, together

try:
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import Buffer
    from zarr.core.buffer.core import default_buffer_prototype
    from zarr.storage import LocalStore
except ImportError as _error:
    raise missing("zarr", _error) from _error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

    from trio_aio.integrations.batches import Range

__all__ = ("AioStore",)

# What is in the way of a value: there is none.
_ABSENT = FileNotFoundError, IsADirectoryError, NotADirectoryError


class AioStore(LocalStore):
    """A zarr store in a folder. ``AioStore(root, read_only=False)``, with the arguments and results of `LocalStore`.

    Its coroutines run on zarr's own event loop, or on the caller's asyncio loop. TypeError for a value that is no Buffer, and for a byte
    request of an unknown type; ValueError to write to a store that is read-only, and for a byte request with a negative start.
    """

    def __repr__(self) -> str:
        return f"AioStore('{self}')"

    # ---- reading

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value, or a range of it; None if there is none."""
        if not self._is_open:
            await self._ensure_open()
        if prototype is None:
            prototype = default_buffer_prototype()
        path = self._path(key)
        try:
            if byte_range is None:
                data: bytes | Exception = await trio_aio.read_bytes(path)
            else:
                [data] = await read_parts(path, [_limits(byte_range)], 0)
        except _ABSENT:
            return None
        return _found(prototype, data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return ranges of values in the order of `key_ranges`, None where there is no value. The ranges of a value are read together."""
        await self._ensure_open()
        return [_buffer(prototype, data) for data in await self._read_ranges(key_ranges)]

    async def _read_ranges(self, key_ranges: Iterable[tuple[str, ByteRequest | None]]) -> list[bytes | Exception]:
        """Return ranges of values in the order of `key_ranges`, each error in the place of what it prevented."""
        wanted: dict[str, list[int]] = {}
        limits: list[Range] = []
        for index, (key, byte_range) in enumerate(key_ranges):
            wanted.setdefault(self._path(key), []).append(index)
            limits.append(_limits(byte_range))
        results: list[Any] = [None] * len(limits)
        parts = [(path, [limits[index] for index in indices], 0) for path, indices in wanted.items()]
        for indices, found in zip(wanted.values(), await together(read_parts, parts), strict=True):
            for position, index in enumerate(indices):
                results[index] = found if isinstance(found, Exception) else found[position]
        return results

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        await self._ensure_open()
        ranges: list[tuple[str, BufferPrototype, ByteRequest]] = []
        whole: list[tuple[str, BufferPrototype]] = []
        for key, prototype, byte_range in requests:
            if byte_range is None:
                whole.append((key, prototype))
            else:
                ranges.append((key, prototype, byte_range))
        for (key, prototype, _), data in zip(ranges, await self._read_ranges((key, wanted) for key, _, wanted in ranges), strict=True):
            yield key, _buffer(prototype, data)
        async with trio_aio.read_files((self._path(key) for key, _ in whole), depth=DEPTH, on_error="return") as files:
            at = iter(whole)
            async for _, data in files:
                key, prototype = next(at)
                yield key, _buffer(prototype, data)

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int = 10,
        max_gap_bytes: int = 1 << 20,
        max_coalesced_bytes: int = 16 << 20,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield all ranges of a value as one batch of pairs (index, Buffer). max_gap_bytes: ranges that are so near share a
        request of at most 1 MiB.

        What goes wrong is raised in zarr's group: a FileNotFoundError if there is no value.
        """
        await self._ensure_open()
        limits = [_limits(byte_range) for byte_range in byte_ranges]
        if not limits:
            return
        try:
            batch = [
                (index, _found(prototype, data)) for index, data in enumerate(await read_parts(self._path(key), limits, max_gap_bytes))
            ]
        except OSError:
            # zarr reads each range by `get`, and puts what goes wrong into its group.
            async for group in super().get_ranges(key, byte_ranges, prototype=prototype, max_gap_bytes=max_gap_bytes):
                yield group
        else:
            yield batch

    async def exists(self, key: str) -> bool:
        """Return whether there is a value."""
        return await trio_aio.os.path.isfile(self._path(key))

    async def getsize(self, key: str) -> int:
        """Return the size of a value. FileNotFoundError."""
        return await trio_aio.os.path.getsize(self._path(key))

    # ---- writing

    async def set(self, key: str, value: Buffer) -> None:
        """Set a value. Readers see the old one or the new one, never a part."""
        await self._write(key, value, exclusive=False)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set a value, unless there is one."""
        try:
            await self._write(key, value, exclusive=True)
        except (FileExistsError, IsADirectoryError):
            return

    async def _write(self, key: str, value: Buffer, *, exclusive: bool) -> None:
        await self._ensure_open()
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(f"AioStore.set(): `value` must be a Buffer instance. Got an instance of {type(value)} instead.")
        path, data = self._path(key), value.as_buffer_like()
        if not exclusive and await trio_aio.os.path.islink(path):
            # Other values may be links to the same file. write_bytes would write to that.
            await self._replace_link(path, data)
            return
        try:
            await trio_aio.write_bytes(path, data, atomic=True, exclusive=exclusive)
        except FileNotFoundError:
            await trio_aio.os.makedirs(os.path.dirname(path), exist_ok=True)
            await trio_aio.write_bytes(path, data, atomic=True, exclusive=exclusive)

    async def _replace_link(self, path: str, data: Any) -> None:
        """Put a new file in the place of a link. After an error or a cancellation no temporary name remains."""
        new = f"{path}.{secrets.token_hex(16)}.partial"
        try:
            await trio_aio.write_bytes(new, data, exclusive=True)
            await trio_aio.os.replace(new, path)
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(FileNotFoundError):
                await trio_aio.os.unlink(new)
            raise

    async def delete(self, key: str) -> None:
        """Remove a value, or the folder of that name with all that is in it. Nothing, if there is neither."""
        self._check_writable()
        path = self._path(key)
        try:
            await trio_aio.os.unlink(path)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            await trio_aio.remove_tree(path, missing_ok=True)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all values below a prefix. ValueError if it is a value itself."""
        self._check_writable()
        path = self._path(prefix)
        if await trio_aio.os.path.isdir(path):
            await trio_aio.remove_tree(path, missing_ok=True)
        elif await trio_aio.os.path.isfile(path):
            raise ValueError(f"delete_dir was passed a {prefix=!r} that is a file")

    def _path(self, key: str) -> str:
        if not key or key[-1] in "/." or "//" in key or "/./" in key:
            return str(self.root / key)  # without the slash at its end, and other parts that name nothing
        return os.path.join(self.root, key)


def _limits(byte_range: ByteRequest | None) -> Range:
    """Return a byte request as the limits of a slice. TypeError for one of an unknown type; ValueError for one that cannot be meant."""
    if byte_range is None:
        return None, None
    if isinstance(byte_range, SuffixByteRequest):
        return (-byte_range.suffix, None) if byte_range.suffix > 0 else (0, 0)
    if isinstance(byte_range, RangeByteRequest):
        start, end = byte_range.start, byte_range.end
    elif isinstance(byte_range, OffsetByteRequest):
        start, end = byte_range.offset, None
    else:
        raise TypeError(f"Unexpected byte_range, got {byte_range}.")
    if start < 0 or (end is not None and end < start):
        # A slice would count from the end.
        raise ValueError(f"a byte request must start at 0 or above, and not end before it starts: {byte_range}")
    return start, end


def _found(prototype: BufferPrototype, data: bytes | Exception) -> Buffer:
    """Return what was read as a buffer, or raise the error in its place."""
    if isinstance(data, Exception):
        raise data
    buffer: Buffer = prototype.buffer.from_bytes(data)
    return buffer


def _buffer(prototype: BufferPrototype, data: bytes | Exception) -> Buffer | None:
    """Return what was read as a buffer, None for a value that is not there. Raise any other error."""
    return None if isinstance(data, _ABSENT) else _found(prototype, data)
