"""`open_file`: what `trio.open_file` and `anyio.open_file` open, with their arguments, results and errors."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import pty
import socket
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from trio_aio import AsyncFile, AsyncTextFile, current_context, open_file, wrap_file

from ..support.files import is_open, make_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]


async def test_open_file_without_a_mode_gives_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a line\nand another", encoding="utf-8")
    async with await open_file(path) as file:
        assert isinstance(file, AsyncTextFile)
        assert [line async for line in file] == ["a line\n", "and another"]
    assert file.closed


async def test_open_file_in_binary_mode_gives_a_file_of_ours(tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    async with open_file(path, "rb") as file:
        assert isinstance(file, AsyncFile)
        assert await file.read() == data


async def test_result_is_a_coroutine_that_opens_when_it_is_awaited(tmp_path: Path) -> None:
    path = tmp_path / "new"
    opening = open_file(path, "xb")
    assert inspect.isawaitable(opening)
    assert asyncio.iscoroutine(opening)
    await checkpoint()
    assert not path.exists()
    await (await opening).aclose()
    assert path.exists()


async def test_unused_result_is_named_in_the_warning(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="'open_file' was never awaited"):
        open_file(tmp_path / "file")


@pytest.mark.parametrize("kind", ["anyio", "trio", "none"])
@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_limiter_is_kept_and_gives_no_token(tmp_path: Path, kind: str, mode: str) -> None:
    path, _ = make_file(tmp_path)
    limiter: Any = {"anyio": lambda: anyio.CapacityLimiter(1), "trio": lambda: trio.CapacityLimiter(1), "none": lambda: None}[kind]()
    if limiter is not None and (kind == "anyio" or trio.lowlevel.in_trio_task()):
        limiter.acquire_on_behalf_of_nowait(object())
    async with await open_file(path, mode, encoding="latin-1" if mode == "r" else None, limiter=limiter) as file:
        assert file.limiter is limiter
        await file.read(10)


@pytest.mark.parametrize("limiter", [1, object(), "limiter", anyio.CapacityLimiter])
async def test_limiter_of_another_type_is_refused(tmp_path: Path, limiter: Any) -> None:
    with pytest.raises(TypeError, match="limiter"):
        open_file(tmp_path / "file", limiter=limiter)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/full"])
async def test_character_device_is_opened_by_anyio(device: str) -> None:
    limiter = anyio.CapacityLimiter(1)
    async with await open_file(device, "rb", 0, limiter=limiter) as file:
        assert type(file) is anyio.AsyncFile
        assert file.limiter is limiter
        assert await file.read(3) == (b"" if device == "/dev/null" else b"\0\0\0") or device == "/dev/urandom"


async def test_terminal_is_opened_by_anyio() -> None:
    master, slave = pty.openpty()
    try:
        async with await open_file(os.ttyname(slave), "r+b", 0) as file:
            assert file.isatty()
            await file.write(b"hello\n")
        assert os.read(master, 100) == b"hello\r\n"
        async with open_file(slave, "wb", 0, closefd=False) as file:
            await file.write(b"again\n")
        assert os.read(master, 100) == b"again\r\n"
    finally:
        os.close(master)
        os.close(slave)


async def test_fifo_blocks_in_a_thread_until_the_other_side_opens(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got: list[bytes] = []

    async def read() -> None:
        async with await open_file(path, "rb") as file:
            got.append(await file.read())

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        async with open_file(path, "wb") as file:
            await file.write(b"through")
    assert got == [b"through"]
    # The workers have looked at the kind of the file, and opened nothing.
    assert current_context().statistics().in_flight == 0


async def test_descriptor_of_a_pipe_or_socket_is_served(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with open_file(reader, "rb", 0) as left, open_file(writer, "wb", 0) as right:
        await right.write(b"x")
        assert await left.read(1) == b"x"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with open_file(ours.fileno(), "wb", 0, closefd=False) as file:
            await file.write(b"y")
        assert theirs.recv(1) == b"y"


async def test_opener_is_called_once_and_its_descriptor_handed_on(tmp_path: Path) -> None:
    calls: list[Any] = []

    def opener(name: str, flags: int) -> int:
        calls.append((name, flags))
        return os.open("/dev/zero", flags)

    async with open_file(tmp_path / "name", "rb", 0, opener=opener) as file:
        assert await file.read(2) == b"\0\0"
        assert file.name == str(tmp_path / "name")
        fd = file.fileno()
    assert len(calls) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("mode", ["r", "rb", "w", "xb", "a", "r+b"])
@pytest.mark.parametrize("what", ["a directory", "nothing", "a socket", "a terminal that is not there", "a path through a file"])
async def test_error_equals_that_of_built_in_open(tmp_path: Path, what: str, mode: str) -> None:
    path = tmp_path / "name"
    server = socket.socket(socket.AF_UNIX)
    if what == "a directory":
        path.mkdir()
    elif what == "a socket":
        server.bind(str(path))
    elif what == "a path through a file":
        path.touch()
        path = path / "below"
    elif what == "a terminal that is not there":
        path = type(path)("/dev/ptmx_that_is_not_there") if mode == "r" else path / "nothing"
    elif mode[0] in "wxa":
        path = path / "nothing"
    with server:
        with pytest.raises(OSError) as theirs:  # noqa: PT011
            open(path, mode)  # noqa: ASYNC230, SIM115
        with pytest.raises(OSError) as ours:  # noqa: PT011
            await open_file(path, mode)
    assert (type(ours.value), ours.value.errno, ours.value.filename) == (type(theirs.value), theirs.value.errno, str(path))


async def test_direct_never_takes_the_other_way(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null"):
        with pytest.raises(io.UnsupportedOperation):
            await open_file(path, "rb", direct=True)


@pytest.mark.parametrize(
    "arguments", [{"mode": "q"}, {"mode": "rb", "encoding": "utf-8"}, {"mode": "r", "buffering": 0}, {"closefd": False}]
)
async def test_invalid_argument_is_refused_as_by_built_in_open(tmp_path: Path, arguments: Any) -> None:
    path, _ = make_file(tmp_path)
    with pytest.raises(ValueError):  # noqa: PT011
        open(path, **arguments)  # noqa: ASYNC230, SIM115
    with pytest.raises(ValueError):  # noqa: PT011
        await open_file(path, **arguments)
    with pytest.raises(TypeError):
        await open_file(path, mode=None)  # type: ignore[call-overload]


async def test_cancelled_open_of_a_device_leaves_no_descriptor(tmp_path: Path) -> None:
    made: list[int] = []

    def opener(name: str, flags: int) -> int:
        made.append(os.open("/dev/null", flags))
        return made[-1]

    with anyio.CancelScope() as scope:
        limiter = anyio.CapacityLimiter(1)
        limiter.acquire_on_behalf_of_nowait(object())
        async with anyio.create_task_group() as group:

            @group.start_soon
            async def cancel() -> None:
                while not made:
                    await checkpoint()
                while not limiter.statistics().tasks_waiting:
                    await checkpoint()
                scope.cancel()

            await open_file(tmp_path / "name", "rb", opener=opener, limiter=limiter)
    assert scope.cancelled_caught
    while is_open(made[0]):  # a worker closes it
        await checkpoint()


def test_wrap_file_is_that_of_anyio() -> None:
    assert wrap_file is anyio.wrap_file


async def test_limiter_of_trio_limits_the_threads_of_a_file_of_anyio() -> None:
    limiter = trio.CapacityLimiter(1)
    if not trio.lowlevel.in_trio_task():
        with pytest.raises(TypeError, match="trio only"):
            await open_file("/dev/zero", "rb", limiter=limiter)
        return
    reader, writer = os.pipe()
    async with await open_file(reader, "rb", 0, limiter=limiter) as file:
        kept = file.limiter
        assert isinstance(kept, anyio.CapacityLimiter)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await file.read(1))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(read)
            while not limiter.statistics().tasks_waiting:
                await checkpoint()
            assert (kept.borrowed_tokens, kept.total_tokens, kept.available_tokens) == (1, 1, 0)
            os.write(writer, b"ab")
        assert sorted(got) == [b"a", b"b"]
        kept.total_tokens = 2
        async with kept:
            assert limiter.borrowed_tokens == 1
        assert limiter.total_tokens == 2
    os.close(writer)
