"""Lines, read-ahead, and who sees the cursor where."""

from __future__ import annotations

import errno
import gc
import io
import os
import resource
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_aio import AIOContext, open_aio, write_bytes
from trio_aio._engine.shared_file import SharedFile
from trio_aio._files.cursor import Cursor

from ..support.files import BLOCK, content, make_file
from ..support.page_cache import attempts, evict
from ..support.pipes import full_pipe
from ..support.tasks import busy, cancel_when_blocked, cancelled_while_blocked, write_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio import AsyncFile


LINES = [b"%d\n" % i for i in range(20_000)]


def lines_file(folder: Path, data: bytes = b"".join(LINES)) -> Path:
    path = folder / "lines"
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return path


def requests(file: AsyncFile) -> int:
    """Count what was asked of the kernel, in every lane."""
    return file.context.statistics().completed


# ---- lines


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"no end",
        b"a\rb\r\nc\n\n\nd",
        b"x" * 300_000 + b"\n" + b"y" * 300_000,
        b"".join(LINES),
        content(200_000),
        b"\n" * 10_000,
        pytest.param(b"\n" * 100_000, marks=pytest.mark.slow),
    ],
    ids=lambda data: f"{len(data)} bytes, {data.count(10)} lines",
)
@pytest.mark.trio
async def test_lines_equal_those_of_io(disk: Path, data: bytes, direct: bool) -> None:
    path = lines_file(disk, data)
    expected = io.BytesIO(data).readlines()
    async with open_aio(path, direct=direct) as file:
        assert [line async for line in file] == expected
        assert await file.tell() == len(data)
        assert [line async for line in file] == []
        await file.seek(0)
        assert await file.readlines() == expected
        await file.seek(0)
        lines = []
        while line := await file.readline():
            lines.append(line)
        assert lines == expected


@pytest.mark.trio
async def test_readline_and_readlines_obey_limits(disk: Path) -> None:
    data = b"one\ntwo\nthree\n" + b"x" * 100_000 + b"\nlast"
    path = lines_file(disk, data)
    async with open_aio(path) as file:
        for size in (0, 1, 2, 3, 4, 5, 100, 70_000, 70_001, -1, None):
            await file.seek(0)
            model = io.BytesIO(data)
            for _ in range(6):
                assert await file.readline(size) == model.readline(size)
                assert await file.tell() == model.tell()
        with open(path, "rb") as model_file:  # noqa: ASYNC230
            for hint in (-1, 0, 1, 3, 4, 5, 13, 14, 100_020, None):
                await file.seek(0)
                model_file.seek(0)
                assert await file.readlines(hint) == model_file.readlines(-1 if hint is None else hint)
                assert await file.tell() == model_file.tell()
        for call in (file.readline, file.readlines, file.read1):
            with pytest.raises(TypeError):
                await call("1")  # type: ignore[operator]


@pytest.mark.trio
async def test_line_in_memory_needs_no_system_call(disk: Path) -> None:
    path = lines_file(disk)
    async with open_aio(path) as file:
        assert await file.readline() == LINES[0]
        before = requests(file)
        for i in range(1, 1000):
            assert await file.readline() == LINES[i]
        async for line in file:
            assert line == LINES[1000]
            break
        assert await file.tell() == sum(map(len, LINES[:1001]))
        assert requests(file) == before
        assert [line async for line in file] == LINES[1001:]
        assert requests(file) - before < 10


@pytest.mark.trio
async def test_readline_is_a_checkpoint_but_a_loop_line_in_memory_is_not(disk: Path) -> None:
    path = lines_file(disk)
    async with open_aio(path) as file:
        for _ in range(3):
            with assert_checkpoints():
                await file.readline()
            with assert_checkpoints():
                await file.peek()
            with assert_checkpoints():
                await file.readlines(10)
        await file.seek(0)
        ran = False

        async def other() -> None:
            nonlocal ran
            ran = True

        async with trio.open_nursery() as nursery:
            count = 0
            async for _ in file:
                count += 1
                if count == 1:
                    nursery.start_soon(other)
                if count == 100:
                    break
            assert not ran
            assert [line async for line in file] == LINES[100:]
            assert ran  # at the next piece


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.trio
async def test_loop_left_early_can_be_followed_by_any_call(disk: Path, direct: bool) -> None:
    data = b"".join(LINES)
    path = lines_file(disk, data)
    model = io.BytesIO(data)
    async with open_aio(path, direct=direct) as file:
        for turn in range(300):
            left = turn % 7
            async for line in file:
                assert line == model.readline()
                if left == 0:
                    break
                left -= 1
            assert await file.tell() == model.tell()
            if turn % 3 == 0:
                assert await file.read(turn) == model.read(turn)
            elif turn % 3 == 1:
                assert await file.readline() == model.readline()
            if turn % 11 == 10:
                assert await file.seek(-3, os.SEEK_CUR) == model.seek(-3, os.SEEK_CUR)


@pytest.mark.trio
async def test_cursor_in_another_task_is_after_the_last_line(disk: Path) -> None:
    path = lines_file(disk)
    async with open_aio(path) as file:
        seen: list[bytes] = []

        async def take_some() -> None:
            while len(seen) < 3000:
                seen.append(await file.readline())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_some)
            async for line in file:
                seen.append(line)
                if len(seen) % 10 == 0:
                    assert await file.tell() == sum(map(len, seen))
        assert seen == LINES


@pytest.mark.trio
async def test_loop_waits_for_earlier_cursor_calls(disk: Path) -> None:
    path = lines_file(disk)
    async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        assert await file.__anext__() == LINES[0]  # more of them are in memory now
        got: list[bytes] = []

        async def next_line() -> None:
            got.append(await file.__anext__())

        async with busy(context) as pipe, trio.open_nursery() as nursery:
            nursery.start_soon(file.write, b"1\n2\n")
            await wait_all_tasks_blocked()
            nursery.start_soon(next_line)
            await wait_all_tasks_blocked()
            assert not got
            pipe.release()
        assert got == [LINES[3]]


@pytest.mark.trio
async def test_loop_over_file_not_open_for_reading_raises(disk: Path) -> None:
    path = lines_file(disk)
    async with open_aio(path, "ab") as file:
        with pytest.raises(io.UnsupportedOperation):
            await file.__anext__()
    with pytest.raises(ValueError, match="closed"):
        aiter(file)
    async with open_aio(path) as file:
        assert await file.__anext__() == LINES[0]
        await file.aclose()
        with pytest.raises(ValueError, match="closed"):
            await file.__anext__()  # though it was in memory


# ---- what was read ahead stays right


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.trio
async def test_next_line_shows_a_write(disk: Path, direct: bool) -> None:
    lines = [b"%04095d\n" % i for i in range(16)]
    new = b"x" * (BLOCK - 1) + b"\n"
    calls: list[Callable[[AsyncFile, int], Awaitable[object]]] = [
        lambda file, offset: file.pwrite(new, offset),
        lambda file, offset: file.pwritev([new[: BLOCK // 2], new[BLOCK // 2 :]], offset),
    ]
    for call in calls:
        path = lines_file(disk, b"".join(lines))
        async with open_aio(path, "r+b", direct=direct) as file:
            assert await file.__anext__() == lines[0]
            await call(file, BLOCK)
            assert await file.__anext__() == new
            assert await file.readline() == lines[2]
            await call(file, 3 * BLOCK)
            assert await file.readline() == new
            await call(file, 4 * BLOCK)
            assert await file.read(BLOCK) == new
            await file.truncate(6 * BLOCK)
            assert await file.readlines() == [lines[5]]
            await file.seek(BLOCK)
            assert await file.__anext__() == new
            assert await file.write(new) == BLOCK
            await file.seek(-BLOCK, os.SEEK_CUR)
            assert await file.__anext__() == new


async def _pwrite(path: Path, other: AsyncFile, new: bytes) -> None:
    await other.pwrite(new, 0)


async def _by_another_name(path: Path, other: AsyncFile, new: bytes) -> None:
    link = path.with_name("another")
    link.hardlink_to(path)
    async with open_aio(link, "r+b", direct=not other.direct) as linked:
        await linked.write(new)
    link.unlink()


async def _by_descriptor(path: Path, other: AsyncFile, new: bytes) -> None:
    await other.context.pwrite(other.fileno(), new, 0)


async def _ranges(path: Path, other: AsyncFile, new: bytes) -> None:
    await other.write_ranges([(0, new[:BLOCK]), (BLOCK, new[BLOCK:])])


async def _writer(path: Path, other: AsyncFile, new: bytes) -> None:
    async with other.writer() as writer:
        await writer.write(new)


async def _whole(path: Path, other: AsyncFile, new: bytes) -> None:
    await write_bytes(path, new)


async def _anew(path: Path, other: AsyncFile, new: bytes) -> None:
    async with open_aio(path, "w", encoding="ascii") as file:
        await file.write(new.decode())


async def _anew_by_opener(path: Path, other: AsyncFile, new: bytes) -> None:
    async with open_aio("any", "wb", opener=lambda _, flags: os.open(path, flags)):
        pass
    async with open_aio(path, "ab") as file:
        await file.write(new)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(
    "change", [_pwrite, _by_another_name, _by_descriptor, _ranges, _writer, _whole, _anew, _anew_by_opener], ids=lambda call: call.__name__
)
@pytest.mark.trio
async def test_other_file_of_the_same_run_shows_a_change_at_once(
    disk: Path, direct: bool, change: Callable[[Path, AsyncFile, bytes], Awaitable[None]]
) -> None:
    old, new = b"o" * (BLOCK - 1) + b"\n", b"n" * (BLOCK - 1) + b"\n"
    path = lines_file(disk, 2 * old)
    async with open_aio(path, direct=direct) as reader, open_aio(path, "r+b") as other:
        assert await reader.readline() == old
        await change(path, other, 2 * new)
        assert await reader.__anext__() == new
        await reader.seek(0)
        assert await reader.read(10) == new[:10]
        await other.truncate(0)
        assert await reader.read(10) == b""


@pytest.mark.trio
async def test_text_loop_shows_a_change_at_its_next_line(disk: Path) -> None:
    path = lines_file(disk)
    async with open_aio(path, "r", encoding="utf-8") as reader, open_aio(path, "r+b") as other:
        given = 0
        async for line in reader:
            given += len(line)
            if given > 90_000:
                await other.pwrite(b"n" * 19 + b"\n", given)
                assert await reader.__anext__() == "n" * 19 + "\n"
                break
        assert await reader.tell() == given + 20


@pytest.mark.trio
async def test_open_that_truncates_discards_read_ahead(disk: Path) -> None:
    path = lines_file(disk)
    async with open_aio(path) as reader:
        assert await reader.readline() == LINES[0]
        async with open_aio(path, "wb"):
            assert await reader.readline() == b""


@pytest.mark.trio
async def test_read_ahead_that_overlaps_a_write_is_discarded(disk: Path) -> None:
    path = lines_file(disk)

    async def read(file: AsyncFile, got: list[bytes]) -> None:
        got.append(await file.readline())

    for _ in attempts("a read that had to wait"):
        lines_file(disk)
        async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
            evict(path)
            got: list[bytes] = []
            async with busy(context) as pipe, trio.open_nursery() as nursery:
                nursery.start_soon(read, file, got)
                await wait_all_tasks_blocked()
                waited = not got
                nursery.start_soon(file.pwrite, b"x", 2)  # behind the read, both of them before the read's end is seen
                await wait_all_tasks_blocked()
                pipe.release()
            assert got == [b"0\n"]
            assert await file.readline() == b"x\n"
        if waited:
            break


@pytest.mark.trio
async def test_small_direct_reads_are_served_from_memory(disk: Path) -> None:
    path, data = make_file(disk, 40 * BLOCK)
    async with open_aio(path, direct=True) as file:
        assert await file.read(100) == data[:100]
        before = requests(file)
        got = b""
        for size in (1, 17, 1000, 500):
            got += await file.read(size)
        buffer = bytearray(333)
        assert await file.readinto(buffer) == 333
        assert await file.read1(10) == data[1951:1961]
        assert await file.seek(50) == 50
        assert await file.read(3) == data[50:53]
        assert requests(file) == before
        assert got + buffer == data[100:1951]
        await file.seek(0)
        while part := await file.read(333):
            assert part
        assert requests(file) - before < 12


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.trio
async def test_read1_and_readinto1_need_at_most_one_request(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 200_000)
    async with open_aio(path, direct=direct) as file:
        for call in ("read1", "readinto1"):
            await file.seek(0)
            got = b""
            for size in (1, 0, 10, 70_000, 100):
                before = requests(file)
                if call == "read1":
                    part = await file.read1(size)
                else:
                    buffer = bytearray(size)
                    n = await file.readinto1(buffer)
                    part = bytes(buffer[:n])
                assert requests(file) - before <= 1
                assert len(part) > 0 or not size
                assert len(part) <= size
                got += part
            assert data.startswith(got)
        assert len(await file.read1()) > 0
        ahead = await file.peek()
        assert ahead
        assert await file.peek(1) == ahead[: len(await file.peek(1))]
        assert await file.read(len(ahead)) == ahead
        await file.seek(0, os.SEEK_END)
        assert await file.read1() == await file.peek() == b""
        assert await file.readinto1(bytearray(5)) == 0
        with pytest.raises(TypeError):
            await file.readinto1(b"read-only")  # type: ignore[arg-type]


@pytest.mark.trio
async def test_growing_file_is_read_to_its_new_end(disk: Path) -> None:
    path = lines_file(disk, b"one\ntw")
    async with open_aio(path) as file:
        assert [line async for line in file] == [b"one\n", b"tw"]
        with path.open("ab") as other:
            other.write(b"o\nthree\n")
        assert [line async for line in file] == [b"o\n", b"three\n"]
        with path.open("ab") as other:
            other.write(bytes(1 << 20))
        assert await file.readall() == bytes(1 << 20)


# ---- writing


@pytest.mark.trio
async def test_writelines_writes_all_kinds_of_bytes(disk: Path) -> None:
    path = disk / "file"
    lines: list[Any] = [b"one\n", bytearray(b"two\n"), memoryview(b"three\n"), b"", b"x" * (3 << 20), b"end"]
    async with open_aio(path, "wb") as file:
        await file.writelines(iter(lines))
        await file.writelines([])
        assert await file.tell() == sum(map(len, lines))
        for bad in ("text", ["text"], [1], 5):
            with pytest.raises(TypeError):
                await file.writelines(bad)  # type: ignore[arg-type]
        assert await file.tell() == sum(map(len, lines))
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.trio
async def test_cancelled_writelines_writes_nothing_or_all(disk: Path) -> None:
    path = disk / "file"
    lines = [b"x" * 1000] * 5000
    async with AIOContext(max_workers=1) as context, open_aio(path, "wb", context=context) as file:
        async with busy(context):
            assert await cancelled_while_blocked(lambda: file.writelines(lines))
        assert (await file.tell(), await file.size()) == (0, 0)

        def and_cancel() -> Any:
            for i, line in enumerate(lines):
                if i == 3000:
                    scope.cancel()  # some are written
                yield line

        with trio.CancelScope() as scope:
            await file.writelines(and_cancel())
        assert await file.tell() == await file.size() == 5_000_000


@pytest.mark.trio
async def test_failed_write_leaves_the_cursor_after_the_bytes_written(disk: Path) -> None:
    path = disk / "file"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * BLOCK, old[1]))
    try:
        for mode in ("w+b", "a+b"):
            path.write_bytes(bytes(BLOCK))
            async with open_aio(path, mode) as file:
                start = BLOCK if mode == "a+b" else 0
                await file.seek(1)
                if mode == "w+b":
                    start = 1
                with pytest.raises(OSError, match="too large") as caught:
                    await file.write(bytes(20 * BLOCK))
                assert caught.value.errno == errno.EFBIG
                assert caught.value.characters_written == 10 * BLOCK - start  # type: ignore[attr-defined]
                assert await file.tell() == 10 * BLOCK
                with pytest.raises(OSError, match="too large"):
                    await file.write(b"x")
                assert await file.tell() == 10 * BLOCK
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


# ---- cancellation


@pytest.mark.parametrize("name", ["read", "readall", "readline", "readlines", "read1", "readinto", "readinto1", "peek", "__anext__"])
@pytest.mark.trio
async def test_cancelled_cursor_call_leaves_the_cursor(disk: Path, name: str) -> None:
    path = lines_file(disk)
    arguments: dict[str, list[Any]] = {"read": [100], "readinto": [bytearray(10)], "readinto1": [bytearray(10)], "readlines": [50]}
    for _ in attempts("a call that had to wait"):
        async with AIOContext(max_workers=1) as context, open_aio(path, context=context) as file:
            await file.seek(10)
            evict(path)
            async with busy(context):
                if not await cancelled_while_blocked(partial(getattr(file, name), *arguments.get(name, []))):
                    continue
            assert await file.tell() == 10
            assert await file.read(2) == b"5\n"
            break


@pytest.mark.trio
async def test_readlines_cancelled_half_way_leaves_the_cursor(disk: Path) -> None:
    path = lines_file(disk)
    for _ in attempts("a call that had to wait"):
        async with AIOContext(max_workers=1) as context, open_aio(path, context=context) as file:
            assert await file.readline() == b"0\n"
            evict(path)
            async with busy(context):
                if not await cancelled_while_blocked(partial(file.readlines, 1 << 20)):
                    continue
            assert await file.tell() == 2
            assert await file.readlines() == LINES[1:]
            break


@pytest.mark.trio
async def test_cancelled_wait_for_the_cursor_keeps_the_order_of_others(disk: Path) -> None:
    path = lines_file(disk)
    async with AIOContext(max_workers=1) as context, open_aio(path, "r+b", context=context) as file:
        with full_pipe() as pipe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_to, context, pipe)
                await wait_all_tasks_blocked()
                nursery.start_soon(file.write, LINES[0])
                await wait_all_tasks_blocked()
                for call in (file.readline, file.__anext__, file.tell, lambda: file.seek(5), lambda: file.writelines([b"x"])):
                    with trio.CancelScope() as scope:
                        nursery.start_soon(cancel_when_blocked, scope)
                        await call()
                    assert scope.cancelled_caught
                pipe.release()
        assert await file.readline() == LINES[1]


# ---- the parts


def test_block_of_file_changed_meanwhile_is_not_cached() -> None:
    ahead = Cursor(5, SharedFile())
    version = ahead.version
    ahead.forget()
    ahead.keep(5, b"old", version)
    assert ahead.available == 0
    ahead.keep(5, b"new\n", ahead.version)
    assert (ahead.available, ahead.line(-1)) == (4, (b"new\n", True))


def test_shared_file_notifies_only_caches_with_data_and_holds_weak_references() -> None:
    inode = SharedFile()
    one, two = Cursor(0, inode), Cursor(0, inode)
    for ahead in (one, two):
        ahead.keep(0, b"old\n", ahead.version)
        next(ahead.split())
    assert one.registered
    assert two.registered
    two.keep(4, b"late", two.version)
    version = two.version
    inode.note_change()
    assert (one.position, one.available, one.registered, two.position, two.available, two.registered) == (4, 0, False, 4, 0, False)
    two.keep(4, b"late", version)
    assert (two.available, two.registered) == (0, False)
    for _ in range(1000):  # dropped, and no change that would clear the list
        Cursor(0, inode).keep(0, b"piece", inode.version)
    gc.collect()
    assert len(inode._copies) < 20


def test_read_ahead_grows_while_reads_are_sequential() -> None:
    ahead = Cursor(0, SharedFile())
    sizes = []
    position = 0
    for _ in range(6):
        sizes.append(ahead.next_size(position))
        ahead.keep(position, bytes(sizes[-1]), ahead.version)
        position += sizes[-1]
    assert sizes == [8192, 16384, 32768, 65536, 65536, 65536]
    assert ahead.next_size(3) == 8192


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("where", [(0, os.SEEK_CUR), (0, os.SEEK_END)])
async def test_seek_beside_a_loop_over_lines_takes_no_line_back(disk: Path, direct: bool, where: tuple[int, int]) -> None:
    path = lines_file(disk, b"".join(LINES[:400]))
    got: list[bytes] = []
    async with open_aio(path, direct=direct) as file:
        ended = False

        async def seek() -> None:
            while not ended:
                await file.seek(*where)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(seek)
            async for line in file:
                got.append(line)
                await trio.lowlevel.checkpoint()
            ended = True
    assert got == LINES[: len(got)]
    if where[1] == os.SEEK_CUR:
        assert len(got) == 400
