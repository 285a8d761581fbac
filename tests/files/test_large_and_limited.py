"""Sizes and offsets at their limits: RLIMIT_FSIZE, more bytes than there is memory for, results in one copy, the largest offset."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy
import pytest

from tests.support.files import make_file
from tests.support.programs import run as run_program
from trio_aio import open_aio
from trio_aio._context import operations
from trio_aio._files import kernel_cursor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio import AsyncFile

BLOCK = 4096
LARGEST = (1 << 63) - 1
MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])

# ---- RLIMIT_FSIZE

LIMITED = """
    limit, direct, mode, size, calls = int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4], int(sys.argv[5]), sys.argv[6:]

    async def through_writer(file, data):
        async with file.writer(size=4 * BLOCK) as writer:
            await writer.write(data)

    async def outcome(name):
        with open(path, "wb") as made:
            made.truncate(size)
        data = b"x" * 3 * BLOCK
        calls = {
            "pwrite": lambda: file.pwrite(data, 0),
            "unaligned": lambda: file.pwrite(memoryview(bytearray(b"x") + data)[1:], 0),
            "pwritev": lambda: file.pwritev([data[:6000], data[6000:]], 0),
            "write": lambda: file.write(data),
            "large": lambda: file.pwrite(b"x" * (3 << 20), 0),
            "write_ranges": lambda: file.write_ranges([(0, data[:BLOCK]), (BLOCK, data[BLOCK:])]),
            "writer": lambda: through_writer(file, data),
            "within": lambda: file.pwrite(data[: limit // 512 * 512], 0),
        }
        async with open_aio(path, mode, direct=direct) as file:
            try:
                await calls[name]()
            except OSError as error:
                with open(path, "rb") as plain:
                    written = plain.read().count(b"x")
                return error.errno == errno.EFBIG and error.characters_written == written and limit - BLOCK < written <= limit
            return name == "within"

    async def main():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for name in calls:
            if not await outcome(name):
                print(name)
    trio.run(main)
"""
WRITES = ("pwrite", "unaligned", "pwritev", "write", "large", "write_ranges", "writer", "within")


@MODES
@pytest.mark.parametrize("limit", [2 * BLOCK, 2 * BLOCK + 100, 2 * BLOCK + 512])
def test_a_write_across_the_limit_of_file_sizes_is_efbig(filesystem: Path, direct: bool, limit: int) -> None:
    path, _ = make_file(filesystem)
    assert not run_program(LIMITED, path, limit, direct, "r+b", 0, *WRITES)


@MODES
def test_an_overwrite_across_the_limit_of_file_sizes_is_efbig(filesystem: Path, direct: bool) -> None:
    path, _ = make_file(filesystem)
    assert not run_program(
        LIMITED.replace("resource.setrlimit", "os.truncate(path, 0) or resource.setrlimit"),
        path,
        2 * BLOCK + 100,
        direct,
        "r+b",
        0,
        "pwrite",
    )
    program = LIMITED.replace("made.truncate(size)", "pass").replace('"wb") as made', '"rb") as made')
    path.write_bytes(bytes(4 << 20))
    assert not run_program(program, path, 2 * BLOCK + 100, direct, "r+b", 4 << 20, *WRITES[:3])


# ---- memory


@pytest.mark.trio
@MODES
@pytest.mark.parametrize("adopted", [False, True], ids=["opened", "adopted"])
async def test_readall_has_its_result_in_memory_once(disk: Path, direct: bool, adopted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "LARGEST_READ", 2 << 20)
    monkeypatch.setattr(kernel_cursor, "_LARGEST_READ", 2 << 20)
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    path, data = make_file(disk, (16 << 20) + 123)
    calls: dict[str, Callable[[AsyncFile], Awaitable[Any]]] = {
        "read": lambda file: file.read(),
        "readall": lambda file: file.readall(),
        "pread": lambda file: file.pread(1 << 60, 0),
        "read of more": lambda file: file.read(1 << 60),
    }
    for name, call in calls.items():
        async with open_aio(os.open(path, flags) if adopted else path, direct=direct) as file:
            tracemalloc.start()
            assert await call(file) == data, name
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert most < 1.2 * len(data), name


@pytest.mark.trio
@MODES
async def test_readall_of_a_file_that_changes_gives_what_there_is(disk: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "LARGEST_READ", 1 << 20)
    path, data = make_file(disk, 3 << 20)
    async with open_aio(path, direct=direct) as file:
        with open(path, "ab") as plain:  # noqa: ASYNC230
            plain.write(data)
        assert await file.read() == data + data
        await file.seek(10)
        os.truncate(path, 2 << 20)
        assert await file.read() == data[10 : 2 << 20]


def test_more_than_there_is_memory_for_is_a_memory_error(disk: Path) -> None:
    path, _ = make_file(disk, 10)
    with (disk / "sparse").open("wb") as made:
        made.truncate(8 << 40)
    program = """
        from trio_aio import read_bytes, read_text
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        sparse = path[:-4] + "sparse"

        async def through_chunks(file, size):
            async for chunk in file.chunks(size):
                return chunk

        async def through_writer(file, size):
            async with file.writer(size=size) as writer:
                await writer.write(b"x")

        async def main():
            for direct in (False, True):
                async with open_aio(sparse, "r+b", direct=direct) as file, open_aio(sparse) as plain, open_aio(sparse, "r") as text:
                    for name, call in {
                        "read": lambda: file.read(),
                        "readall": lambda: file.readall(),
                        "readlines": lambda: file.readlines(),
                        "pread": lambda: file.pread(1 << 60, 0),
                        "read of a size": lambda: file.read(1 << 60),
                        "read1": lambda: file.read1(1 << 60),
                        "read_ranges": lambda: file.read_ranges([(0, 1 << 60)]),
                        "read_blocks": lambda: file.read_blocks([0], 1 << 50),
                        "chunks": lambda: through_chunks(file, 1 << 60),
                        "writer": lambda: through_writer(file, 1 << 60),
                        "text": lambda: text.read(),
                        "read_bytes": lambda: read_bytes(sparse),
                        "read_text": lambda: read_text(sparse),
                    }.items():
                        try:
                            print(direct, name, len(await call()))
                        except MemoryError:
                            pass
                        if await file.pread(5, 0) != bytes(5):
                            print(name, "and then nothing more")

        trio.run(main)
        """
    assert not run_program(program, path)


# ---- NumPy

BUFFERS: dict[str, Any] = {
    "dates": numpy.array(["2020-01-01", "2021-01-01"], "M8[s]"),
    "spans": numpy.array([1, 2], "m8[ms]"),
    "no dates": numpy.zeros(0, "M8[D]"),
    "a date": numpy.datetime64("2020-01-01"),
    "structured": numpy.array([(1, "2020-01-01"), (2, "2021-01-01")], [("a", "i4"), ("b", "M8[s]")]),
    "two dimensions": numpy.zeros((3, 4), "M8[s]"),
    "void": numpy.zeros(2, "V3"),
    "text": numpy.array(["a", "bc"]),
    "memoryview": memoryview(numpy.arange(10, dtype="f8")),
}
REFUSED: dict[str, Any] = {
    "objects": numpy.array([object(), 1], object),
    "objects and dates": numpy.zeros(2, [("a", "O"), ("b", "M8[s]")]),
    "objects in a field": numpy.zeros(2, [("a", "i4"), ("b", "O")]),
    "a view of objects": memoryview(numpy.array([object()], object)),
}
CALLS: dict[str, Callable[[AsyncFile, Any], Awaitable[Any]]] = {
    "write": lambda file, buffer: file.write(buffer),
    "pwrite": lambda file, buffer: file.pwrite(buffer, 0),
    "pwritev": lambda file, buffer: file.pwritev([buffer], 0),
    "writelines": lambda file, buffer: file.writelines([buffer]),
    "write_ranges": lambda file, buffer: file.write_ranges([(0, buffer)]),
    "writer": lambda file, buffer: _through_writer(file, buffer),
}


async def _through_writer(file: AsyncFile, data: Any) -> None:
    async with file.writer() as writer:
        await writer.write(data)


@pytest.mark.trio
@MODES
async def test_what_open_writes_is_written(disk: Path, direct: bool) -> None:
    path = disk / "file"
    for label, buffer in BUFFERS.items():
        for name, call in CALLS.items():
            async with open_aio(path, "w+b", direct=direct) as file:
                await call(file, buffer)
            assert path.read_bytes() == buffer.tobytes(), (label, name)


@pytest.mark.trio
@MODES
async def test_dates_are_read_into(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, BLOCK)
    async with open_aio(path, "rb", direct=direct) as file:
        for dtype in ("M8[s]", "m8[s]", [("a", "i4"), ("b", "M8[s]")]):
            for read in (
                lambda buffer: file.preadinto(buffer, 0),
                lambda buffer: file.preadv([buffer], 0),
                lambda buffer: _after_seek(file, buffer),
                lambda buffer: file.read_blocks([0], buffer.nbytes, into=buffer),
            ):
                buffer = numpy.zeros(5, dtype)
                await read(buffer)
                assert buffer.tobytes() == data[: buffer.nbytes]
                buffer.flags.writeable = False
                with pytest.raises(TypeError):
                    await read(buffer)


async def _after_seek(file: AsyncFile, buffer: Any) -> None:
    await file.seek(0)
    await file.readinto(buffer)


@pytest.mark.trio
@MODES
async def test_objects_are_refused(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    for label, buffer in REFUSED.items():
        for name, call in {**CALLS, "preadinto": lambda file, buffer: file.preadinto(buffer, 0)}.items():
            async with open_aio(path, "r+b", direct=direct) as file:
                with pytest.raises(TypeError):
                    await call(file, buffer)
                assert await file.tell() == 0, (label, name)
    assert path.read_bytes() == data


# ---- the largest offset


@pytest.mark.trio
@pytest.mark.parametrize("distance", [0, 1, 10, 511, 512, BLOCK - 1, BLOCK, 2 * BLOCK - 1])
@pytest.mark.parametrize("size", [1, 10, 512, BLOCK, 3 << 20])
async def test_a_read_near_the_largest_offset_does_what_the_system_call_does(disk: Path, distance: int, size: int) -> None:
    path, _ = make_file(disk)
    offset = LARGEST - distance
    fd = os.open(path, os.O_RDONLY)
    try:
        expected: Any = os.pread(fd, size, offset)
    except OSError as error:
        expected = error.errno
    finally:
        os.close(fd)
    for direct in (False, True):
        async with open_aio(path, "rb", direct=direct) as file:
            for name, read in {
                "pread": lambda: file.pread(size, offset),
                "preadinto": lambda: _bytes_of(lambda buffer: file.preadinto(buffer, offset), size),
                "preadv": lambda: _bytes_of(lambda buffer: file.preadv([buffer], offset), size),
                "read_ranges": lambda: _first(file.read_ranges([(offset, size)])),
                "read": lambda: _from(file, offset, lambda: file.read(size)),
                "chunks": lambda: _chunks(file, size, offset),
            }.items():
                try:
                    got: Any = await read()
                except OSError as error:
                    got = error.errno
                assert got == expected, (direct, name)


@pytest.mark.trio
@MODES
@pytest.mark.parametrize("distance", [0, 1, 511, 512, BLOCK, 1 << 20])
async def test_reads_that_ask_for_no_size_find_the_end_of_the_file(disk: Path, direct: bool, distance: int) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, "rb", direct=direct) as file:
        for read in (file.read, file.readall, file.read1, file.readline, file.peek, file.readlines, lambda: _lines(file)):
            assert not await _from(file, LARGEST - distance, read)
            assert await file.tell() == LARGEST - distance


async def _lines(file: AsyncFile) -> list[bytes]:
    return [line async for line in file]


async def _from(file: AsyncFile, offset: int, read: Callable[[], Awaitable[Any]]) -> Any:
    await file.seek(offset)
    return await read()


async def _bytes_of(read: Callable[[bytearray], Awaitable[int]], size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await read(buffer)])


async def _first(found: Awaitable[list[bytes]]) -> bytes:
    return (await found)[0]


async def _chunks(file: AsyncFile, size: int, start: int) -> bytes:
    async with file.chunks(size, start=start) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.trio
async def test_the_last_bytes_below_the_largest_offset_can_be_read(on_filesystem: Callable[[str], Path]) -> None:
    path = on_filesystem("xfs") / "file"
    with open(path, "wb") as plain:  # noqa: ASYNC230
        plain.truncate(LARGEST)
        os.pwrite(plain.fileno(), b"the end", LARGEST - 7)
    for direct in (False, True):
        async with open_aio(path, "rb", direct=direct) as file:
            assert await file.pread(7, LARGEST - 7) == b"the end"
            assert await file.pread(10, LARGEST - 10) == bytes(3) + b"the end"
            assert await file.read_ranges([(LARGEST - 7, 7), (LARGEST - 4000, 10)]) == [b"the end", bytes(10)]
            assert await _bytes_of(lambda buffer: file.preadinto(buffer, LARGEST - 7), 7) == b"the end"
