"""AsyncFile's calls, compared with the operating system's."""

from __future__ import annotations

import array
import ctypes
import errno
import io
import os
import random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group

from trio_aio import RWF, AIOContext, AsyncFile, open_aio

from ..support.files import BLOCK, content, make_file
from ..support.page_cache import attempts, evict
from ..support.pipes import full_pipe
from ..support.tasks import cancel_when_blocked, until_blocked, write_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SIZES = (0, 1, 2, 511, BLOCK, BLOCK + 1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, (1 << 20) + 3)


# ---- reading


@pytest.mark.parametrize("cold", [False, True])
async def test_pread_equals_os_pread(filesystem: Path, cold: bool) -> None:
    path, data = make_file(filesystem, (1 << 20) + 12345)
    if cold:
        evict(path)
    async with open_aio(path) as file:
        for size in SIZES:
            for offset in (0, 1, BLOCK - 1, len(data) - size // 2, len(data) - 1, len(data), len(data) + BLOCK, 2**40):
                expected = data[offset : offset + size]
                assert await file.pread(size, offset) == expected
                buffer = bytearray(size)
                assert await file.preadinto(buffer, offset) == len(expected)
                assert buffer == expected + bytes(size - len(expected))


async def test_preadv_fills_buffers_in_order(filesystem: Path) -> None:
    path, data = make_file(filesystem)
    async with open_aio(path, "r+b") as file:
        for sizes in ([], [0], [1, 0, 2], [BLOCK] * 3, [3] * 2000, [len(data), 10]):
            buffers = [bytearray(size) for size in sizes]
            total = await file.preadv(buffers, 5)
            assert total == min(sum(sizes), len(data) - 5)
            assert b"".join(buffers)[:total] == data[5 : 5 + total]
            assert await file.pwritev([data[5:][sum(sizes[:i]) :][:size] for i, size in enumerate(sizes)], 5) == total
        assert await file.pread(len(data) + 1, 0) == data


async def test_read_of_hole_beyond_4_gib_returns_zeros(filesystem: Path) -> None:
    path = filesystem / "sparse"
    async with open_aio(path, "w+b") as file:
        assert await file.pwrite(b"end", 5 << 30) == 3
        assert await file.pread(BLOCK, 3 << 30) == bytes(BLOCK)
        assert await file.pread(10, (5 << 30) - 2) == b"\0\0end"
        assert await file.size() == (5 << 30) + 3


async def test_preadinto_and_pwrite_take_every_kind_of_buffer(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b") as file:
        longs, raw = array.array("q", [0] * 8), ctypes.create_string_buffer(64)
        part = bytearray(200)
        for buffer in (longs, raw, memoryview(part)[100:164], memoryview(longs).cast("B")):
            assert await file.preadinto(buffer, 7) == 64
            assert bytes(buffer) == data[7:71]
            assert await file.pwrite(buffer, 7) == 64
        assert part == bytes(100) + data[7:71] + bytes(36)
        for bad, kind in ((b"read-only", TypeError), ("text", TypeError), (None, TypeError), (memoryview(part)[::2], BufferError)):
            with pytest.raises(kind):
                await file.preadinto(bad, 0)  # type: ignore[arg-type]
            with pytest.raises(kind):
                await file.preadv([bytearray(1), bad], 0)  # type: ignore[list-item]
        for bad, kind in (("text", TypeError), (None, TypeError), (5, TypeError), (memoryview(part)[::2], BufferError)):
            with pytest.raises(kind):
                await file.pwrite(bad, 0)  # type: ignore[arg-type]
            with pytest.raises(kind):
                await file.write(bad)  # type: ignore[arg-type]
    assert path.read_bytes() == data


async def test_invalid_offsets_and_sizes_are_refused(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b") as file:
        for offset in (-1, -(2**63)):
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: file.pread(1, offset),  # noqa: B023
                lambda: file.preadinto(bytearray(1), offset),  # noqa: B023
                lambda: file.preadv([], offset),  # noqa: B023
                lambda: file.pwrite(b"x", offset),  # noqa: B023
                lambda: file.pwritev([b"x"], offset),  # noqa: B023
                lambda: file.fallocate(offset, 1),  # noqa: B023
            ]
            for call in calls:
                with pytest.raises(ValueError, match="negative offset"):
                    await call()
        with pytest.raises(ValueError, match="negative size"):
            await file.pread(-1, 0)
        for value in (1.5, "1", None):
            with pytest.raises(TypeError):
                await file.pread(1, value)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await file.pread(value, 0)  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            await file.pread(1, 2**63)
        with pytest.raises(OverflowError):
            await file.pwrite(b"x", 2**63)
        assert file.context.statistics().in_flight == 0
    assert path.read_bytes() == data


# ---- flags


async def test_flags_reach_the_kernel(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b") as file:
        assert await file.pwrite(b"durable", 0, flags=RWF.DSYNC) == 7
        assert await file.pwrite(b"end", 0, flags=RWF.APPEND) == 3
        assert await file.pread(10, len(data)) == b"end"
        assert await file.pread(7, 0, flags=RWF.HIPRI) == b"durable"
        for _ in attempts("a page that was not cached"):
            evict(path)
            refused = None
            try:
                assert await file.pread(BLOCK, 0, flags=RWF.NOWAIT) == b"durable" + data[7:BLOCK]
            except BlockingIOError as error:
                refused = error
            if refused:
                break
        assert refused is not None
        assert refused.filename == str(path)
        with pytest.raises(OSError, match="not supported") as unknown:
            await file.pread(1, 0, flags=1 << 30)
        assert unknown.value.errno == errno.EOPNOTSUPP


# ---- writing


async def test_pwrite_writes_all_bytes(filesystem: Path) -> None:
    path = filesystem / "file"
    model = bytearray()
    chance = random.Random(2)
    async with open_aio(path, "w+b") as file:
        for _ in range(60):
            offset, data = chance.randrange(1 << 18), content(chance.choice(SIZES), chance.random())  # type: ignore[arg-type]
            assert await file.pwrite(data, offset) == len(data)
            if data:
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + len(data)] = data
        assert await file.pread(len(model) + 1, 0) == model
        await file.fsync()
        await file.fdatasync()
    assert path.read_bytes() == model


async def test_write_on_full_disk_reports_bytes_written(on_filesystem: Callable[[str], Path]) -> None:
    path = on_filesystem("small_tmpfs") / "file"
    async with open_aio(path, "wb") as file:
        with pytest.raises(OSError, match="No space left") as caught:
            await file.write(bytes(4 << 20))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        written = caught.value.characters_written  # type: ignore[attr-defined]
        assert 0 < written < 4 << 20
        assert await file.size() == written
        assert await file.tell() == written


async def test_write_beyond_file_size_limit_reports_bytes_written(disk: Path, file_size_limit: int) -> None:
    async with open_aio(disk / "file", "wb") as file:
        with pytest.raises(OSError, match="too large") as caught:
            await file.pwrite(bytes(2 * file_size_limit), 0)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(disk / "file"))
        assert caught.value.characters_written == file_size_limit  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="too large") as caught:
            await file.pwrite(b"x", file_size_limit)
        assert caught.value.characters_written == 0  # type: ignore[attr-defined]


# ---- the wrong mode, a closed file


async def test_call_in_wrong_mode_raises_unsupported_operation(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path) as file:
        for call in (
            lambda: file.pwrite(b"x", 0),
            lambda: file.pwritev([b"x"], 0),
            lambda: file.write(b"x"),
            lambda: file.truncate(0),
            lambda: file.fallocate(0, 1),
        ):
            with pytest.raises(io.UnsupportedOperation, match="not open for writing"):
                await call()
    assert path.read_bytes() == data
    async with open_aio(path, "ab") as file:
        for call in (
            lambda: file.pread(1, 0),
            lambda: file.preadinto(bytearray(1), 0),
            lambda: file.preadv([bytearray(1)], 0),
            lambda: file.read(),
            lambda: file.read(1),
            lambda: file.readall(),
            lambda: file.readinto(bytearray(1)),
        ):
            with pytest.raises(io.UnsupportedOperation, match="not open for reading"):
                await call()


async def test_call_of_closed_file_raises_value_error(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, "r+b") as file:
        pass
    calls: list[Callable[[], Any]] = [
        lambda: file.pread(1, 0),
        lambda: file.preadinto(bytearray(1), 0),
        lambda: file.preadv([bytearray(1)], 0),
        lambda: file.pwrite(b"x", 0),
        lambda: file.pwritev([b"x"], 0),
        lambda: file.read(),
        lambda: file.read(1),
        lambda: file.readall(),
        lambda: file.readinto(bytearray(1)),
        lambda: file.write(b"x"),
        lambda: file.seek(0),
        file.tell,
        file.truncate,
        file.flush,
        file.fsync,
        file.fdatasync,
        file.stat,
        file.size,
        lambda: file.fallocate(0, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            await call()
    for plain in (file.fileno, file.readable, file.writable, file.seekable, file.isatty):
        with pytest.raises(ValueError, match="I/O operation on closed file"):
            plain()
    assert file.closed
    assert "closed" in repr(file)
    assert file.name == str(path)


async def test_descriptor_closed_elsewhere_raises_ebadf(disk: Path) -> None:
    path, _ = make_file(disk)
    file = await open_aio(path)
    os.close(file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await file.pread(1, 0)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(path))
    with pytest.raises(OSError, match="Bad file descriptor"):
        await file.aclose()


# ---- the cursor


@pytest.mark.parametrize("mode", ["r+b", "w+b", "a+b"])
async def test_cursor_moves_like_that_of_fileio(disk: Path, mode: str) -> None:
    """The same random calls on an io.FileIO and on ours."""
    chance = random.Random(mode)
    paths = [make_file(disk, 10_000, name)[0] for name in ("theirs", "ours")]
    with open(paths[0], mode, buffering=0) as theirs:  # noqa: ASYNC230
        async with open_aio(paths[1], mode) as ours:
            for _ in range(400):
                name = chance.choice(["read", "read", "write", "seek", "tell", "truncate", "readinto", "readall"])
                arguments: list[Any] = []
                if name == "read":
                    arguments = [chance.choice([0, 1, 100, 5000, -1, None])]
                elif name == "write":
                    arguments = [chance.randbytes(chance.randrange(300))]
                elif name == "seek":
                    whence = chance.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
                    arguments = [chance.randrange(-200 if whence else -1, 12_000), whence]
                elif name == "truncate":
                    arguments = [chance.choice([None, chance.randrange(12_000)])]
                elif name == "readinto":
                    arguments = [bytearray(chance.randrange(300))]
                results: list[Any] = []
                for file in (theirs, ours):
                    copies = [bytearray(a) if isinstance(a, bytearray) else a for a in arguments]
                    try:
                        result: Any = getattr(file, name)(*copies)
                        result = await result if file is ours else result
                    except OSError as error:
                        result = (type(error), error.errno)
                    results.append((result, copies))
                assert results[0] == results[1], name
                assert theirs.tell() == await ours.tell()
    assert paths[0].read_bytes() == paths[1].read_bytes()


async def test_seek_finds_data_and_holes(disk: Path) -> None:
    path = disk / "sparse"
    async with open_aio(path, "w+b") as file:
        await file.pwrite(b"x", 1 << 20)
        await file.fsync()
        assert await file.seek(0, os.SEEK_DATA) == 1 << 20
        assert await file.seek(0, os.SEEK_HOLE) == 0
        with pytest.raises(OSError, match="No such device or address"):
            await file.seek(1 << 30, os.SEEK_DATA)
        assert await file.tell() == 0


async def test_cursor_calls_of_several_tasks_run_in_order(disk: Path) -> None:
    path, data = make_file(disk)
    async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        results: dict[int, bytes] = {}

        async def read(i: int) -> None:
            results[i] = await file.read(100)

        with full_pipe() as pipe:
            async with create_task_group() as group:
                group.start_soon(write_to, context, pipe)
                await until_blocked()
                group.start_soon(file.write, b"first")  # waits for the worker
                await until_blocked()
                for i in range(10):
                    group.start_soon(read, i)
                    await until_blocked()
                assert not results
                pipe.release()
        expected = b"first" + data[5:]
        assert results == {i: expected[5 + 100 * i :][:100] for i in range(10)}


async def test_cursor_call_from_another_thread_is_refused(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path) as file, file._lock:
        for call in (lambda: file.read(1), lambda: file.seek(0)):
            with pytest.raises(RuntimeError, match="another thread"):
                await anyio.to_thread.run_sync(anyio.run, call)


async def test_cancelled_task_leaves_the_cursor_queue(disk: Path) -> None:
    path, data = make_file(disk)
    async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        with full_pipe() as pipe:
            async with create_task_group() as group:
                group.start_soon(write_to, context, pipe)
                await until_blocked()
                group.start_soon(file.write, b"first")
                await until_blocked()
                with CancelScope() as scope:
                    group.start_soon(cancel_when_blocked, scope)
                    await file.read(100)
                assert scope.cancelled_caught
                pipe.release()
        assert await file.read(5) == data[5:10]


# ---- the rest


async def test_stat_and_size_equal_fstat(filesystem: Path) -> None:
    path, data = make_file(filesystem)
    async with open_aio(path) as file:
        ours, theirs = await file.stat(), os.fstat(file.fileno())
        assert tuple(ours) == tuple(theirs)
        for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert abs(ours.st_mtime - theirs.st_mtime) < 1e-6
        assert await file.size() == len(data)


async def test_fallocate_extends_the_file(disk: Path) -> None:
    async with open_aio(disk / "file", "wb") as file:
        await file.fallocate(BLOCK, BLOCK)
        assert await file.size() == 2 * BLOCK
        with pytest.raises(OSError, match="Invalid argument"):
            await file.fallocate(0, 0)


async def test_direct_files_read_and_write_the_same_bytes(filesystem: Path) -> None:
    path, data = make_file(filesystem, 2 << 20)
    new = content(64 * BLOCK, seed=3)
    async with open_aio(path, "r+b", direct=True) as file:
        assert file.direct
        unit = file.alignment.offset
        assert unit in (1, 512, BLOCK)
        for size in (0, BLOCK, 64 * BLOCK, 2 << 20, 4 << 20):
            assert await file.pread(size, BLOCK) == data[BLOCK : BLOCK + size]
            buffer = bytearray(size + 1)
            assert await file.preadinto(memoryview(buffer)[1:], BLOCK) == len(data[BLOCK : BLOCK + size])  # nowhere near aligned
            assert buffer[1:] == data[BLOCK : BLOCK + size] + bytes(max(0, BLOCK + size - len(data)))
        parts = [bytearray(BLOCK // 2) for _ in range(8)]
        assert await file.preadv(parts, 0) == 4 * BLOCK
        assert b"".join(parts) == data[: 4 * BLOCK]
        assert await file.pwrite(new, BLOCK) == len(new)
        assert await file.pwritev([new[:BLOCK], new[BLOCK:]], 128 * BLOCK) == len(new)
        assert await file.pwrite(new[:BLOCK], len(data)) == BLOCK  # appends
        await file.fsync()
        await file.fdatasync()
        assert await file.seek(BLOCK) == BLOCK
        assert await file.read(BLOCK) == new[:BLOCK]
        await file.seek(0)
        whole = await file.readall()
    expected = bytearray(data)
    expected[BLOCK : BLOCK + len(new)] = expected[128 * BLOCK : 128 * BLOCK + len(new)] = new
    assert whole == path.read_bytes() == expected + new[:BLOCK]


@pytest.mark.parametrize("length", [300, 2 * BLOCK, 16 * BLOCK + 77])
async def test_direct_reads_take_any_offset_size_and_buffer(filesystem: Path, length: int) -> None:
    path, data = make_file(filesystem, length)
    edges = sorted(
        {0, 1, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, length - 513, length - 1, length, length + 1, length + BLOCK}
        & set(range(1 << 20))
    )
    async with open_aio(path, direct=True) as file:
        for offset in edges:
            for size in (1, 511, 512, 1025, BLOCK, 3 * BLOCK + 5):
                expected = data[offset : offset + size]
                assert await file.pread(size, offset) == expected
                buffer = bytearray(size + 2)
                assert await file.preadinto(memoryview(buffer)[1:-1], offset) == len(expected)
                assert buffer == b"\0" + expected + bytes(size - len(expected) + 1)
                parts = [bytearray(1), bytearray(0), bytearray(size)]
                assert await file.preadv(parts, offset) == len(data[offset : offset + size + 1])
                assert b"".join(parts) == data[offset : offset + size + 1].ljust(size + 1, b"\0")
        await file.seek(3)
        assert await file.read(100) == data[3:103]
        assert await file.read() == data[103:]
        assert await file.tell() == length


async def test_repr_describes_the_file(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, "r+b") as file:
        assert repr(file) == f"<trio_aio.AsyncFile name={str(path)!r} mode='rb+'>"
        assert isinstance(file, AsyncFile)
        assert not file.isatty()
        assert not file.direct
        assert (file.alignment.offset, file.alignment.memory) == (1, 1)
