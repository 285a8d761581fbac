"""What disks do: errors, short counts, late answers and none at all, from a filesystem that misbehaves on demand (`support.fuse`).

Buffered files go through the workers, direct ones through the kernel's AIO.
"""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import shutil
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_aio import AIOContext, AsyncFile, open_aio
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.files import BLOCK, content, make_file
from ..support.fuse import MOST_IN_THE_BACKGROUND, Misbehaving
from ..support.page_cache import pinned
from ..support.tasks import until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.trio
LANES = pytest.mark.parametrize("direct", [False, True], ids=["workers", "kernel"])
SIZE = 64 * BLOCK


@pytest.fixture(scope="module")
def _filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misbehaving]:
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a filesystem of its own")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    filesystem = Misbehaving(tmp_path_factory.mktemp("misbehaving"))
    yield filesystem
    filesystem.end()


@pytest.fixture
def device(_filesystem: Misbehaving) -> Iterator[Misbehaving]:
    """A filesystem with one file in it, "file"."""
    _filesystem.reset()
    make_file(_filesystem.source, SIZE)
    yield _filesystem
    _filesystem.reset()


@pytest.fixture
async def context(device: Misbehaving) -> AsyncIterator[AIOContext]:
    async with AIOContext() as made:
        yield made


async def _open(context: AIOContext, device: Misbehaving, direct: bool, **options: Any) -> AsyncFile:
    """Open the file so that its reads and writes take the lane that a test is about."""
    file = await open_aio(device.folder / "file", "r+b", direct=direct, context=context, **options)
    while direct:
        before = context.statistics()
        await file.pread(1, 0)
        await file.pwrite((device.source / "file").read_bytes()[:1], 0)
        now = context.statistics()
        kernel_did_both = (now.submitted_kernel, now.retried) == (before.submitted_kernel + 2, before.retried)
        devices = (file._descriptor.read_device, file._descriptor.write_device)
        # Otherwise it was found out that this filesystem has no RWF_NOWAIT, memory had to be made, or the filesystem had answered before
        # io_submit returned, as it may on a busy machine: the next 64 requests would go to workers.
        if kernel_did_both and not any(device.skips_left for device in devices):
            break
    await until_idle(context)
    return file


def _content(device: Misbehaving) -> bytes:
    return (device.source / "file").read_bytes()


# ---- errors and short counts


@LANES
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT])
async def test_device_error_raises_oserror_and_the_next_request_works(
    device: Misbehaving, context: AIOContext, direct: bool, error: int
) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: file.pread(BLOCK, 4 * BLOCK),
            "write": lambda: file.pwrite(data[:BLOCK], 0),
            "sync": file.fsync,
        }
        for operation, call in calls.items():
            device.answer("file", operation, error=error)
            with pytest.raises(OSError, match=os.strerror(error)) as caught:
                await call()
            assert (caught.value.errno, caught.value.filename) == (error, str(device.folder / "file"))
            device.reset()
            if operation == "sync":  # what the failed one has lost
                await calls["write"]()
            await call()
        assert await file.pread(SIZE, 0) == data
    await until_idle(context)


@LANES
async def test_error_in_the_middle_of_a_read_returns_no_part(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    size = 4 << 20  # several requests of the filesystem
    _, data = make_file(device.source, size)
    async with await _open(context, device, direct) as file:
        device.answer("file", "read", error=errno.EIO, offset=size // 2)
        with pytest.raises(OSError, match="Input/output error"):
            await file.pread(size, 0)
        device.reset()
        assert await file.pread(size, 0) == data


@LANES
async def test_error_in_the_middle_of_a_write_reports_bytes_written(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    size = 4 << 20
    _, data = make_file(device.source, size)
    new = content(size, seed=1)
    async with await _open(context, device, direct) as file:
        device.answer("file", "write", error=errno.ENOSPC, offset=size // 2)
        with pytest.raises(OSError, match="No space left") as caught:
            await file.pwrite(new, 0)
        written: int = caught.value.characters_written  # type: ignore[attr-defined]
        # FUSE sends the pieces of a direct write all at once, and says nothing of those that succeeded.
        assert written == 0 if direct else 0 < written <= size // 2
        now = _content(device)
        assert now[:written] == new[:written]
        assert now[size // 2 :][:BLOCK] == data[size // 2 :][:BLOCK]
        device.reset()
        assert await file.pwrite(new, 0) == size
        assert _content(device) == new


@LANES
async def test_interrupted_request_is_repeated(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        for operation in ("read", "write", "sync"):
            device.answer("file", operation, error=errno.EINTR, times=2)
        assert await file.pread(BLOCK, 8 * BLOCK) == data[8 * BLOCK : 9 * BLOCK]
        assert await file.pwrite(b"x" * BLOCK, 0) == BLOCK
        await file.fsync()
        assert _content(device)[:BLOCK] == b"x" * BLOCK
        assert device.count("file", "sync") == 3


async def test_short_count_of_device_is_continued(device: Misbehaving, context: AIOContext) -> None:
    data = _content(device)
    new = content(SIZE, seed=1)
    async with await _open(context, device, direct=True) as file:
        device.answer("file", "read", short=1000)
        assert await file.pread(5000, 100) == data[100:5100]
        buffers = [bytearray(10), bytearray(2000), bytearray(3000)]
        assert await file.preadv(buffers, 7) == 5010
        assert b"".join(buffers) == data[7:5017]
        device.answer("file", "write", short=1000)
        with pytest.raises(OSError, match="Input/output error"):  # what FUSE makes of that where it is asynchronous
            await file.pwrite(data[:5000], 0)
    async with await _open(context, device, direct=False) as file:
        assert await file.pwrite(new[:5000], 100) == 5000
        assert await file.pwritev([new[:10], new[10:2010], new[2010:5010]], 10000) == 5010
        now = _content(device)
        assert (now[100:5100], now[10000:15010]) == (new[:5000], new[:5010])
        assert (now[:100], now[15010:]) == (data[:100], data[15010:])


async def test_write_of_0_bytes_raises(device: Misbehaving, context: AIOContext) -> None:
    async with await _open(context, device, direct=True) as file:
        device.answer("file", "write", short=0)
        with pytest.raises(OSError, match="Input/output error"):
            await file.pwrite(bytes(BLOCK), 0)


async def test_short_append_reports_where_it_stopped(device: Misbehaving, context: AIOContext) -> None:
    data = _content(device)
    async with open_aio(device.folder / "file", "ab", context=context) as file:
        device.answer("file", "write", short=1000, times=1)
        device.answer("file", "write", error=errno.ENOSPC, turn=2)
        with pytest.raises(OSError, match="No space left") as caught:
            await file.write(bytes(3000))
        assert caught.value.characters_written == 1000  # type: ignore[attr-defined]
        assert await file.tell() == SIZE + 1000
        device.reset()
        assert await file.write(b"more") == 4
    assert _content(device) == data + bytes(1000) + b"more"


async def test_open_and_close_raise_device_errors(device: Misbehaving, context: AIOContext) -> None:
    device.answer("file", "open", error=errno.EIO, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        await open_aio(device.folder / "file", context=context)
    file = await open_aio(device.folder / "file", "r+b", context=context)
    fd = file.fileno()
    device.answer("file", "flush", error=errno.EDQUOT, times=1)
    with pytest.raises(OSError, match="quota"):
        await file.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    await file.aclose()


# ---- calls of many requests


def _ranges(count: int) -> list[tuple[int, int]]:
    return [(i * 4 * BLOCK, BLOCK) for i in range(count)]


@LANES
@pytest.mark.parametrize("error", [errno.EIO, errno.EAGAIN, errno.EOPNOTSUPP])
async def test_error_in_the_middle_of_a_batch_names_its_offset(device: Misbehaving, context: AIOContext, direct: bool, error: int) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        ranges = _ranges(16)
        bad = ranges[9][0]
        new = [(offset, content(size, seed=offset + 1)) for offset, size in ranges]
        calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "read": [lambda: file.read_ranges(ranges), lambda: file.read_blocks([offset for offset, _ in ranges], BLOCK)],
            "write": [lambda: file.write_ranges(new)],
        }
        for operation, made in calls.items():
            for call in made:
                device.answer("file", operation, error=error, offset=bad)
                with pytest.raises(OSError, match=f"at offset {bad}") as caught:
                    await call()
                assert (caught.value.errno, caught.value.filename) == (error, str(device.folder / "file"))
                device.reset()
        now = _content(device)
        assert now[bad : bad + BLOCK] == data[bad : bad + BLOCK]
        written = sum(now[offset : offset + BLOCK] == piece for offset, piece in new)
        assert caught.value.characters_written == written * BLOCK  # type: ignore[attr-defined]
        assert await file.write_ranges(new) == 16 * BLOCK
        assert await file.read_ranges(ranges) == [piece for _, piece in new]
        assert await file.read_blocks([offset for offset, _ in ranges], BLOCK) == b"".join(piece for _, piece in new)
    await until_idle(context)


async def test_failed_piece_of_batch_counts_its_first_part(device: Misbehaving, context: AIOContext) -> None:
    async with await _open(context, device, direct=False) as file:
        device.answer("file", "write", short=1000, turn=2, times=1)
        device.answer("file", "write", error=errno.ENOSPC, turn=3)
        with pytest.raises(OSError, match=f"No space left.*at offset {2 * BLOCK}") as caught:
            await file.write_ranges([(0, bytes(100)), (2 * BLOCK, bytes(3000)), (4 * BLOCK, bytes(100))])
        assert caught.value.characters_written == 1100  # type: ignore[attr-defined]


@LANES
async def test_interrupted_pieces_of_a_batch_are_repeated(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        ranges = _ranges(16)
        for turn in (2, 7, 8):
            for operation in ("read", "write"):
                device.answer("file", operation, error=errno.EINTR, turn=turn, times=1)
        assert await file.read_ranges(ranges) == [data[offset : offset + size] for offset, size in ranges]
        new = [(offset, content(size, seed=offset + 1)) for offset, size in ranges]
        assert await file.write_ranges(new) == 16 * BLOCK
        assert await file.read_blocks([offset for offset, _ in ranges], BLOCK) == b"".join(piece for _, piece in new)


async def test_short_pieces_of_a_batch_are_continued(device: Misbehaving, context: AIOContext) -> None:
    data = _content(device)
    async with await _open(context, device, direct=True) as file:
        device.answer("file", "read", short=1000)
        ranges = [(i * 5000 + 3, 1 + i * 300) for i in range(16)]
        assert await file.read_ranges(ranges) == [data[offset : offset + size] for offset, size in ranges]
        assert await file.read_blocks([i * 3333 for i in range(16)], 3000) == b"".join(data[i * 3333 :][:3000] for i in range(16))


@LANES
async def test_cancelled_batch_waits_for_hung_requests(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        async with trio.open_nursery() as nursery:
            with device.hanging("read"):
                nursery.start_soon(file.read_ranges, _ranges(16))
                await device.until_held(1)
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                    assert context.statistics().in_flight
        assert await file.read_ranges(_ranges(2)) == [data[:BLOCK], data[4 * BLOCK : 5 * BLOCK]]
    await until_idle(context)


@LANES
async def test_abandoned_batch_completes_into_memory_it_still_owns(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct, abandon_on_cancel=True) as file:
        into = bytearray(16 * BLOCK)
        with device.hanging("read"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: file.read_blocks([i * BLOCK for i in range(16)], BLOCK, into=into))
                await device.until_held(1)
                nursery.cancel_scope.cancel()
            assert into == bytes(16 * BLOCK)
            with pytest.raises(BufferError):
                into.append(0)
        await until_idle(context)
        for i in range(16):
            assert into[i * BLOCK : (i + 1) * BLOCK] in (bytes(BLOCK), data[i * BLOCK : (i + 1) * BLOCK])


@LANES
async def test_chunks_before_an_error_are_returned_and_none_after_it(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        device.answer("file", "read", error=errno.EIO, offset=40 * BLOCK)
        got: list[bytes] = []
        chunks = file.chunks(4 * BLOCK)

        async def collect() -> None:
            async for chunk in chunks:
                got.append(chunk)

        with pytest.raises(OSError, match="Input/output error"):
            await collect()
        assert b"".join(got) == data[: len(got) * 4 * BLOCK]
        # The kernel reads ahead by itself where it has a cache, and asks once more for what failed.
        assert len(got) == 10 if direct else len(got) <= 10
        assert [chunk async for chunk in chunks] == []
        device.reset()
        assert b"".join([chunk async for chunk in file.chunks(4 * BLOCK)]) == data
        await until_idle(context)


@LANES
async def test_hung_chunk_is_returned_by_the_next_step(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file, file.chunks(4 * BLOCK) as chunks:
        async with trio.open_nursery() as nursery:
            with device.hanging("read"):
                nursery.start_soon(chunks.__anext__)
                await device.until_held(1)
                nursery.cancel_scope.cancel()
        assert b"".join([chunk async for chunk in chunks]) == data


@LANES
async def test_writer_error_is_raised_with_bytes_written(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data, new = _content(device), content(SIZE, seed=1)
    async with await _open(context, device, direct) as file:

        async def write(count: int) -> None:
            async with file.writer(size=4 * BLOCK, depth=2) as writer:
                for at in range(0, count, BLOCK):
                    await writer.write(new[at : at + BLOCK])

        for count in (SIZE, 40 * BLOCK):  # it surfaces at a write, and on leaving
            (device.source / "file").write_bytes(data)
            device.answer("file", "write", error=errno.ENOSPC, offset=39 * BLOCK)
            with pytest.raises(OSError, match=f"writing at offset {36 * BLOCK}") as caught:
                await write(count)
            assert caught.value.errno == errno.ENOSPC
            now = _content(device)
            assert now[: 36 * BLOCK] == new[: 36 * BLOCK]
            assert now[39 * BLOCK : 40 * BLOCK] == data[39 * BLOCK : 40 * BLOCK]
            device.reset()
        async with file.writer(size=4 * BLOCK) as writer:
            await writer.write(new)
        assert _content(device) == new
    await until_idle(context)


# ---- syncs


@LANES
async def test_failed_sync_raises_in_all_that_share_it_and_in_the_next(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    async with await _open(context, device, direct) as file:
        results: list[str] = []

        async def sync(name: str) -> None:
            try:
                await file.fdatasync()
            except OSError as error:
                results.append(f"{name}: {error.strerror}")
            else:
                results.append(f"{name}: done")

        device.answer("file", "sync", error=errno.EIO, turn=2, times=1)
        async with trio.open_nursery() as nursery:
            with device.hanging("sync"):
                device.answer("file", "sync", error=errno.EIO, turn=1, times=1)
                nursery.start_soon(sync, "first")
                await device.until_held(1)
                for i in range(8):
                    nursery.start_soon(sync, f"sharer {i}")
                await wait_all_tasks_blocked()
                nursery.start_soon(file.pwrite, b"x" * BLOCK, 0)
        assert device.count("file", "sync") == 2
        assert sorted(results) == ["first: done", *(f"sharer {i}: Input/output error" for i in range(8))]
        await sync("later")
        assert results[-1] == "later: Input/output error"
        await file.pwrite(b"x" * BLOCK, 0)
        await sync("written again")
        assert results[-1] == "written again: done"


# ---- what hangs


@LANES
async def test_cancelled_hung_read_is_waited_for(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                with device.hanging("read"), trio.CancelScope(shield=True):
                    started.set()
                    await device.until_held(1)
                    scope.cancel()
                    await wait_all_tasks_blocked()
                    assert context.statistics().in_flight == 1

            async with trio.open_nursery() as nursery:
                started = trio.Event()
                nursery.start_soon(cancel)
                await started.wait()
                assert await file.pread(BLOCK, 8 * BLOCK) == data[8 * BLOCK : 9 * BLOCK]  # no result is lost
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
    await until_idle(context)


@LANES
async def test_abandoned_read_completes_into_memory_it_still_owns(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct, abandon_on_cancel=True) as file:
        buffer = bytearray(b"-" * BLOCK)
        with device.hanging("read"):
            for number, call in enumerate((lambda: file.preadinto(buffer, 8 * BLOCK), lambda: file.pread(BLOCK, 16 * BLOCK)), 1):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    await device.until_held(number)
                    nursery.cancel_scope.cancel()
                assert context.statistics().in_flight == number
            gc.collect()
            fresh = [bytearray(BLOCK) for _ in range(256)]
        await until_idle(context)
        assert not any(map(any, fresh))
        assert buffer == data[8 * BLOCK : 9 * BLOCK]
        assert await file.pread(BLOCK, 0) == data[:BLOCK]


@LANES
async def test_close_waits_for_a_hung_request(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    file = await _open(context, device, direct)
    fd = file.fileno()
    async with trio.open_nursery() as nursery:
        with device.hanging("read"):
            nursery.start_soon(file.pread, BLOCK, 8 * BLOCK)
            await device.until_held(1)
            nursery.start_soon(file.aclose)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            os.fstat(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@LANES
async def test_close_leaves_an_abandoned_request_to_the_context(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    file = await _open(context, device, direct, abandon_on_cancel=True)
    fd = file.fileno()
    with device.hanging("read"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.pread, BLOCK, 8 * BLOCK)
            await device.until_held(1)
            nursery.start_soon(file.aclose)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        os.fstat(fd)  # it is closed when the read is over
    await until_idle(context)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@LANES
async def test_hung_sync_does_not_block_reads(device: Misbehaving, context: AIOContext, direct: bool) -> None:
    data = _content(device)
    async with await _open(context, device, direct) as file, trio.open_nursery() as nursery:
        with device.hanging("sync"):
            nursery.start_soon(file.fsync)
            await device.until_held(1)
            assert await file.pread(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]


async def test_run_ends_with_an_abandoned_read(device: Misbehaving) -> None:
    data = _content(device)
    buffer = bytearray(BLOCK)

    async def main() -> None:
        file = await open_aio(device.folder / "file", abandon_on_cancel=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.preadinto, buffer, 8 * BLOCK)
            await device.until_held(1)
            nursery.start_soon(file.aclose)
            nursery.cancel_scope.cancel()

    with device.hanging("read"):
        await trio.to_thread.run_sync(trio.run, main)
        assert device.held() == 1
        assert buffer == bytes(BLOCK)
    while buffer != data[8 * BLOCK : 9 * BLOCK]:
        await trio.lowlevel.checkpoint()


# ---- a device that hangs, and the other files


async def _waits(call: Callable[[], Awaitable[object]]) -> None:
    """Check that a call waits, and cancel it."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_hung_requests_on_all_workers_leave_calls_that_need_none(device: Misbehaving, context: AIOContext, disk: Path) -> None:
    path, data = make_file(disk)
    async with (
        await _open(context, device, direct=False) as file,
        open_aio(path, "r+b", context=context) as buffered,
        open_aio(path, direct=True, context=context) as direct,
        trio.open_nursery() as nursery,
    ):
        before = context.statistics().submitted_kernel
        while context.statistics().submitted_kernel == before:
            await direct.pread(BLOCK, 0)
        with pinned(path, 0, BLOCK), device.hanging("read"):  # no worker will be left for a page that is not in the cache
            for i in range(7):
                nursery.start_soon(file.pread, BLOCK, i * 8 * BLOCK)
            await device.until_held(7)
            assert await buffered.truncate(len(data)) == len(data)  # the eighth worker
            nursery.start_soon(file.pread, BLOCK, 56 * BLOCK)
            await device.until_held(8)
            await _waits(lambda: buffered.truncate(len(data)))
            assert await buffered.pread(BLOCK, 0) == data[:BLOCK]  # the page cache
            assert await direct.pread(BLOCK, 0) == data[:BLOCK]  # the kernel
            async with AIOContext(1) as other, open_aio(path, context=other) as elsewhere:
                assert (await elsewhere.stat()).st_size == len(data)


async def test_hung_direct_requests_in_all_slots_leave_the_workers(device: Misbehaving, disk: Path) -> None:
    path, data = make_file(disk)
    slots = MOST_IN_THE_BACKGROUND
    async with (
        AIOContext(slots) as context,
        await _open(context, device, direct=True) as file,
        open_aio(path, direct=True, context=context) as healthy,
        trio.open_nursery() as nursery,
    ):
        before = context.statistics().submitted_kernel
        while context.statistics().submitted_kernel == before:
            await healthy.pread(BLOCK, 0)
        with device.hanging("read"):
            for i in range(slots - 1):
                nursery.start_soon(file.pread, 1, i * BLOCK)
            await device.until_held(slots - 1)
            assert await healthy.pread(BLOCK, 0) == data[:BLOCK]  # the last slot
            nursery.start_soon(file.pread, 1, 0)
            await device.until_held(slots)
            await _waits(lambda: healthy.pread(BLOCK, 0))
            assert (await healthy.stat()).st_size == len(data)


@pytest.mark.parametrize("operation", ["read", "write"])
async def test_short_request_refused_by_io_submit_moves_all_bytes(device: Misbehaving, operation: str) -> None:
    data, new = _content(device), content(4 * BLOCK, 1)
    async with FaultyContext() as context, open_aio(device.folder / "file", "r+b", direct=True, context=context) as file:
        await until_idle(context)  # the memory for direct I/O is there
        short = context.short(BLOCK, operation="read" if operation == "read" else "write")
        if operation == "read":
            assert await file.pread(4 * BLOCK, 0) == data[: 4 * BLOCK]
        else:
            assert await file.pwrite(new, 0) == len(new)
            assert _content(device)[: len(new)] == new
        # io_submit refused the read: this filesystem has no RWF_NOWAIT. Writes do not carry it.
        assert context.statistics().retried == (operation == "read")
        assert short.hits == 1


# ---- the kernel's file position


async def test_tell_while_hanging_read_of_child_holds_position_leaves_loop_free(device: Misbehaving, context: AIOContext) -> None:
    """read(2) of a child holds the lock of the position that it shares with us. lseek(2) waits for that lock."""
    path = device.folder / "file"
    watchdog = threading.Timer(30, device.release)  # for a loop that waits too
    async with open_aio(path, "r+b", context=context) as file, trio.open_nursery() as nursery:
        fd = file.fileno()
        watchdog.start()
        with device.hanging("read"):
            reads = [sys.executable, "-c", f"import os; os.read(0, {BLOCK})"]
            nursery.start_soon(partial(trio.run_process, reads, stdin=fd))
            await device.until_held(1)
            told: list[int] = []

            async def tell() -> None:
                told.append(await file.tell())

            nursery.start_soon(tell)
            await wait_all_tasks_blocked()
            assert not told
            assert context.statistics().in_flight == 1
            watchdog.cancel()
    watchdog.join()  # the leak check counts threads
    assert told == [BLOCK]
