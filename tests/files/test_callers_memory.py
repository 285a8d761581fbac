"""Memory of callers: every call that reads into it, or writes from it, takes and refuses the same."""

from __future__ import annotations

import array
import os
from typing import TYPE_CHECKING, Any

import numpy
import pytest

import trio_aio
from trio_aio import SpooledTemporaryFile, open_aio, open_directory

from ..support.files import BLOCK, make_file, opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio import AsyncFile

pytestmark = pytest.mark.anyio

Call = tuple[str, "Callable[[Any], Awaitable[Any]]"]


def reads_of(file: AsyncFile, adopted: AsyncFile, path: Path) -> list[Call]:
    """Return each call that fills memory."""
    return [
        ("readinto", file.readinto),
        ("readinto1", file.readinto1),
        ("readinto of an adopted file", adopted.readinto),
        ("preadinto", lambda buffer: file.preadinto(buffer, 0)),
        ("preadv", lambda buffer: file.preadv([bytearray(1), buffer], 0)),
        ("read_blocks", lambda buffer: file.read_blocks([0], buffer.nbytes, into=buffer)),
        ("preadinto of a context", lambda buffer: file.context.preadinto(adopted.fileno(), buffer, 0)),
        ("read_bytes", lambda buffer: trio_aio.read_bytes(path, into=buffer)),
        ("read_bytes of a part", lambda buffer: trio_aio.read_bytes(path, offset=1, size=2, into=buffer)),
        ("read_bytes of Path", lambda buffer: trio_aio.Path(path).read_bytes(into=buffer)),
    ]


def writes_of(file: AsyncFile, adopted: AsyncFile, path: Path) -> list[Call]:
    """Return each call that takes memory."""

    async def by_writer(buffer: Any) -> None:
        async with file.writer() as writer:
            await writer.write(buffer)

    async def by_directory(buffer: Any) -> None:
        async with open_directory(path.parent) as directory:
            await directory.write_bytes(path.name, buffer, offset=0)

    return [
        ("write", file.write),
        ("writelines", lambda buffer: file.writelines([buffer])),
        ("write to an adopted file", adopted.write),
        ("pwrite", lambda buffer: file.pwrite(buffer, 0)),
        ("pwritev", lambda buffer: file.pwritev([b"x", buffer], 0)),
        ("write_ranges", lambda buffer: file.write_ranges([(0, b"x"), (9, buffer)])),
        ("writer", by_writer),
        ("pwrite of a context", lambda buffer: file.context.pwrite(adopted.fileno(), buffer, 0)),
        ("write_bytes", lambda buffer: trio_aio.write_bytes(path, buffer, offset=0)),
        ("write_bytes of a directory", by_directory),
        ("setxattr", lambda buffer: trio_aio.os.setxattr(path, "user.x", buffer)),
    ]


async def refused(call: Awaitable[Any], name: str) -> None:
    await call
    pytest.fail(f"{name} has taken it")


async def check(path: Path, direct: bool, calls_of: list[Any], make: Callable[[], Any], error: type[Exception] | None, match: str) -> None:
    """Make each call with memory that `make` returns. error: what each raises."""
    with opened(path, os.O_RDWR) as plain:
        async with open_aio(path, "r+b", direct=direct) as file, open_aio(os.dup(plain), "r+b") as adopted:
            for calls in calls_of:
                for name, call in calls(file, adopted, path):
                    if error is None:
                        await call(make())
                        continue
                    with pytest.raises(error, match=match):
                        await refused(call(make()), name)


def read_only() -> Any:
    made = numpy.zeros(8)
    made.setflags(write=False)
    return made


SCATTERED: dict[str, Callable[[], Any]] = {
    "Fortran order": lambda: numpy.zeros((2, 3), order="F"),
    "view in Fortran order": lambda: memoryview(numpy.zeros((2, 3), order="F")),
    "transposed": lambda: numpy.zeros((2, 8), numpy.uint8).T,
    "steps": lambda: numpy.zeros(9)[::2],
    "steps of a view": lambda: memoryview(bytearray(9))[::2],
    "backwards": lambda: numpy.zeros(9)[::-1],
    "backwards of a view": lambda: memoryview(bytearray(9))[::-1],
    "dates in Fortran order": lambda: numpy.zeros((2, 3), "M8[s]", order="F"),
    "dates backwards": lambda: numpy.zeros(9, "M8[s]")[::-1],
}
OBJECTS: dict[str, Callable[[], Any]] = {
    "objects": lambda: numpy.zeros(2, object),
    "fields of objects": lambda: numpy.zeros(2, [("n", "i4"), ("o", "O")]),
}
TAKEN: dict[str, Callable[[], Any]] = {
    "no dimension": lambda: numpy.array(7),
    "two dimensions": lambda: numpy.zeros((2, 3)),
    "both orders": lambda: numpy.zeros((1, 3), order="F"),
    "nothing": lambda: numpy.zeros(0),
    "nothing in two dimensions": lambda: numpy.zeros((0, 3)),
    "nothing in Fortran order": lambda: numpy.zeros((3, 0), order="F"),
    "a field named O": lambda: numpy.zeros(2, [("O", "i4"), ("b", "f8")]),
    "dates": lambda: numpy.zeros(2, "M8[s]"),
    "text": lambda: numpy.zeros(2, "U3"),
    "array": lambda: memoryview(array.array("d", [0, 0])),
}


@pytest.mark.parametrize("direct", [False, True])
async def test_memory_whose_bytes_are_not_side_by_side_is_a_buffer_error(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, BLOCK)
    for make in SCATTERED.values():
        await check(path, direct, [reads_of, writes_of], make, BufferError, "contiguous")
    assert path.read_bytes() == data


@pytest.mark.parametrize("direct", [False, True])
async def test_memory_of_python_objects_is_a_type_error(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, BLOCK)
    for make in OBJECTS.values():
        await check(path, direct, [reads_of, writes_of], make, TypeError, "Python objects")
    assert path.read_bytes() == data


@pytest.mark.parametrize("direct", [False, True])
async def test_read_into_memory_that_is_read_only_is_a_type_error(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, BLOCK)
    await check(path, direct, [reads_of], read_only, TypeError, "writable")
    assert path.read_bytes() == data


@pytest.mark.parametrize("direct", [False, True])
async def test_memory_of_any_other_form_is_taken(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk, BLOCK)
    for make in TAKEN.values():
        await check(path, direct, [reads_of, writes_of], make, None, "")


@pytest.mark.parametrize("rolled", [False, True])
async def test_spooled_file_refuses_the_same_memory_before_and_after_it_moves(tmp_path: Path, rolled: bool) -> None:
    async with SpooledTemporaryFile[bytes](dir=str(tmp_path)) as file:
        await file.write(bytes(BLOCK))
        if rolled:
            await file.rollover()
        for forms, error in ((SCATTERED, BufferError), (OBJECTS, TypeError)):
            for make in forms.values():
                for call in (file.write, file.readinto, file.readinto1):
                    with pytest.raises(error):
                        await call(make())
        for call in (file.readinto, file.readinto1):
            with pytest.raises(TypeError):
                await call(read_only())
        for make in TAKEN.values():
            await file.write(make())
            await file.readinto(make())
