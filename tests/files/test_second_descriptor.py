"""The second descriptor of a direct file: it is opened with the first, or the open says why it cannot be had."""

from __future__ import annotations

import os
import resource
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from anyio.lowlevel import checkpoint

from trio_aio import AIOContext, open_aio
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support import programs
from ..support.files import BLOCK, make_file, opened, opened_paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

AS_NOBODY = """
def become_nobody():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))
"""


def run(program: str, *values: object) -> str:
    """Run a program that may give up its privileges, and return what it printed."""
    need(os.geteuid() == 0, "root, to become another user")
    return programs.run(AS_NOBODY + textwrap.dedent(program), *values)


def open_descriptors(path: Path) -> int:
    """Return how many descriptors of a file this process has."""
    return opened_paths().count(str(path.resolve()))


@pytest.fixture
def no_descriptors_left() -> Iterator[list[int]]:
    """Take all descriptors but those in the list's place: the test closes some to leave room for so many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


def take_all(taken: list[int], model: int) -> None:
    with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012
        while True:
            taken.append(os.dup(model))


@pytest.mark.parametrize("mode", ["r+b", "wb", "x+b", "ab", "r+"])
async def test_open_for_direct_writing_opens_two_descriptors(disk: Path, mode: str) -> None:
    path = disk / "file"
    if "x" not in mode:
        path.write_bytes(bytes(BLOCK))
    async with open_aio(path, mode, direct=True):
        assert open_descriptors(path) == 2
    assert open_descriptors(path) == 0


async def test_open_for_direct_reading_opens_one_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, direct=True):
        assert open_descriptors(path) == 1
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        async with open_aio(fd, "rb", closefd=False):
            assert open_descriptors(path) == 1
        async with open_aio(fd, "r+b", closefd=False):
            assert open_descriptors(path) == 2
        assert open_descriptors(path) == 1


async def test_write_where_no_descriptor_is_left_writes_parts_of_blocks(disk: Path, no_descriptors_left: list[int]) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=True) as file:
        take_all(no_descriptors_left, file.fileno())
        assert await file.pwrite(b"x", 1) == 1
    assert path.read_bytes() == data[:1] + b"x" + data[2:]


@pytest.mark.parametrize("opener", [None, os.open])
async def test_open_where_one_descriptor_is_left_fails_and_closes_the_first(
    disk: Path, no_descriptors_left: list[int], opener: object
) -> None:
    path, _ = make_file(disk)
    async with AIOContext() as context, open_aio(path, "r+b", direct=True, context=context) as file:
        take_all(no_descriptors_left, file.fileno())
        os.close(no_descriptors_left.pop())
        with pytest.raises(OSError, match=r"Too many open files: .* a second descriptor") as caught:
            await open_aio(path, "r+b", direct=True, context=context, opener=opener)  # type: ignore[call-overload]
        assert os.fspath(caught.value.filename) == str(path)
        first_is_closed = False
        while not first_is_closed:  # with an opener, a worker closes it later
            await checkpoint()
            with suppress(OSError):
                no_descriptors_left.append(os.dup(file.fileno()))
                first_is_closed = True


async def test_adoption_that_fails_closes_the_second_descriptor_only(disk: Path) -> None:
    path, _ = make_file(disk)
    async with FaultyContext() as context:
        with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
            with context.fail(29, operation="seek"), pytest.raises(OSError, match="Illegal seek"):
                await open_aio(fd, "r+b", context=context)
            while open_descriptors(path) != 1:
                await checkpoint()
            os.fstat(fd)


async def test_adopted_packet_pipe_is_refused_at_once() -> None:
    reader, writer = os.pipe2(os.O_DIRECT)
    os.close(reader)
    try:
        with pytest.raises(OSError, match="a FIFO"):
            await open_aio(writer, "wb")
    finally:
        os.close(writer)


def test_new_file_that_only_its_creator_may_write_is_refused_at_open(disk: Path) -> None:
    path, _ = make_file(disk)
    os.chmod(disk, 0o777)
    said = run(
        """
        async def main():
            for opener in (None, lambda path, flags: os.open(path, flags, 0o444)):
                os.umask(0o222)
                before = descriptors()
                async with AIOContext() as context:
                    try:
                        await open_aio("new", "x+b", direct=True, opener=opener, context=context)
                    except PermissionError as error:
                        print("second descriptor" in str(error), error.filename == "new")
                print(descriptors() == before)
                os.unlink("new")
        os.chdir(os.path.dirname(path))
        become_nobody()
        trio.run(main)
        """,
        path,
    )
    assert said.split() == ["True", "True", "True"] * 2


def test_direct_descriptor_adopted_without_privileges_is_refused_at_open(disk: Path) -> None:
    path, _ = make_file(disk)
    os.chmod(path, 0o600)
    said = run(
        """
        async def main():
            try:
                await open_aio(fd, "r+b")
            except PermissionError as error:
                print("second descriptor" in str(error))
            async with open_aio(fd, "rb", closefd=False) as file:  # what needs no second one works
                print(await file.pread(10, 5) == data[5:15])
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        become_nobody()
        trio.run(main)
        os.close(fd)
        """,
        path,
    )
    assert said.split() == ["True", "True"]


def test_path_where_proc_is_missing_is_opened_twice_by_its_name(disk: Path) -> None:
    path, data = make_file(disk)
    said = run(
        """
        async def main():
            async with open_aio("/file", "r+b", direct=True) as file:
                await file.pwrite(b"hello", 3)
            async with open_aio("/new", "x+b", direct=True) as file:
                await file.pwrite(b"hello", 3)
                print(await file.pread(10, 0))
            fd = os.open("/file", os.O_RDWR | os.O_DIRECT)
            try:
                await open_aio(fd, "r+b")
            except FileNotFoundError as error:
                print("second descriptor" in str(error))
            os.close(fd)
        import trio_aio._backends._trio, anyio._backends._trio, encodings.idna
        os.chroot(os.path.dirname(path))
        os.chdir("/")
        trio.run(main)
        """,
        path,
    )
    assert said.splitlines() == [repr(b"\0\0\0hello"), "True"]
    assert path.read_bytes() == data[:3] + b"hello" + data[8:]
