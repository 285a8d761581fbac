"""Which library a call belongs to where two run in one thread: guest runs, and loops inside of loops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import trio
import uvloop

from trio_aio import AIOContext, AsyncFile, current_context, open_aio
from trio_aio._backends import current_backend
from trio_aio._backends._asyncio import AsyncioBackend
from trio_aio._backends._trio import TrioBackend

from ..support.files import make_file
from ..support.tasks import run_with_guest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Call = Callable[[AsyncFile], Awaitable[object]]

CALLS: dict[str, Call] = {
    "pread": lambda file: file.pread(10, 0),
    "pread of nothing": lambda file: file.pread(0, 0),
    "pread of much": lambda file: file.pread(1 << 20, 0),
    "preadinto": lambda file: file.preadinto(bytearray(10), 0),
    "preadv": lambda file: file.preadv([bytearray(10)], 0),
    "read": lambda file: file.read(10),
    "readline": lambda file: file.readline(),
    "read_ranges": lambda file: file.read_ranges([(0, 10), (20, 10)]),
    "read_blocks": lambda file: file.read_blocks([0, 10], 10),
    "chunks": lambda file: file.chunks().__anext__(),
    "pwrite": lambda file: file.pwrite(b"x", 0),
    "write": lambda file: file.write(b"x"),
    "write_ranges": lambda file: file.write_ranges([(0, b"x")]),
    "writer": lambda file: file.writer().__aenter__(),
    "tell": lambda file: file.tell(),
    "seek": lambda file: file.seek(1),
    "size": lambda file: file.size(),
    "fsync": lambda file: file.fsync(),
    "truncate": lambda file: file.truncate(10),
    "aclose": lambda file: file.aclose(),
    "context.pread": lambda file: file.context.pread(file.fileno(), 10, 0),
    "context.aclose": lambda file: file.context.aclose(),
}
DIRECT = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


async def _use(path: Path) -> type:
    """Read, write, sync and be done, as files are used; return the type of the backend."""
    async with AIOContext() as context, open_aio(path, "r+b", context=context) as file, open_aio(path, "r+b", direct=True) as direct:
        data = await file.pread(4096, 0)
        for opened in (file, direct):
            await opened.pwrite(data, 4096)
            await opened.fsync()
            assert await opened.pread(4096, 4096) == data
            assert [chunk async for chunk in opened.chunks(4096, stop=8192)] == [data, data]
        return type(context._core.backend)


async def _all_refused(file: AsyncFile) -> None:
    for name, call in CALLS.items():
        try:
            await call(file)
        except RuntimeError:
            assert not file.closed, name
        else:
            pytest.fail(f"{name} worked")


def test_run_of_trio_inside_an_asyncio_task(disk: Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        assert await _use(path) is AsyncioBackend
        assert trio.run(_use, path) is TrioBackend
        assert await _use(path) is AsyncioBackend

    asyncio.run(main())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_loop_of_asyncio_inside_a_trio_task(disk: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        assert await _use(path) is TrioBackend
        loop = new_loop()
        assert loop.run_until_complete(_use(path)) is AsyncioBackend
        loop.close()
        assert await _use(path) is TrioBackend

    trio.run(main)


def test_trio_inside_asyncio_inside_trio(disk: Path) -> None:
    path, _ = make_file(disk)

    async def middle() -> None:
        with pytest.raises(RuntimeError, match=r"Attempted to call run\(\) from inside a run\(\)"):
            trio.run(_use, path)
        assert await _use(path) is AsyncioBackend

    async def main() -> None:
        asyncio.run(middle())
        assert await _use(path) is TrioBackend

    trio.run(main)


@DIRECT
def test_file_of_asyncio_in_a_trio_run_inside_its_task(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        async with open_aio(path, "r+b", direct=direct) as file:
            trio.run(_all_refused, file)
            assert await file.pread(10, 0) == data[:10]

    asyncio.run(main())


@DIRECT
def test_file_of_trio_in_a_loop_of_asyncio_inside_its_task(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        async with open_aio(path, "r+b", direct=direct) as file:
            asyncio.run(_all_refused(file))
            assert await file.pread(10, 0) == data[:10]
            assert await file.pwrite(data[:10], 0) == 10

    trio.run(main)


@DIRECT
@pytest.mark.parametrize("owner", ["host", "guest"])
def test_file_of_the_other_side_of_a_guest_run(disk: Path, direct: bool, owner: str) -> None:
    path, data = make_file(disk)
    files: list[AsyncFile] = []
    opened: dict[str, Any] = {"host": trio.Event(), "guest": asyncio.Event()}
    tried: dict[str, Any] = {"host": asyncio.Event(), "guest": trio.Event()}

    async def own() -> None:
        async with open_aio(path, "r+b", direct=direct) as file:
            files.append(file)
            opened[owner].set()
            await tried[owner].wait()
            assert await file.pread(10, 0) == data[:10]
            assert await file.pwrite(data[:10], 0) == 10

    async def other() -> None:
        await opened[owner].wait()
        try:
            await _all_refused(files[0])
            await _use(path)
        finally:
            tried[owner].set()

    run_with_guest(*((own, other) if owner == "host" else (other, own)))


@DIRECT
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_file_in_another_loop_of_its_thread(disk: Path, direct: bool, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    path, data = make_file(disk)
    first, second = new_loop(), new_loop()

    async def opened() -> AsyncFile:
        return await open_aio(path, "r+b", direct=direct)

    async def close(file: AsyncFile) -> None:
        assert await file.pread(10, 0) == data[:10]
        await file.aclose()

    file = first.run_until_complete(opened())
    second.run_until_complete(_all_refused(file))
    first.run_until_complete(close(file))
    first.close()
    second.close()


def _send(call: Call, file: AsyncFile) -> None:
    """Start a call where no task runs: RuntimeError."""
    coroutine: Any = call(file).__await__()
    coroutine.send(None)


def test_calls_in_a_callback_of_asyncio_do_not_begin(disk: Path) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            for name, call in CALLS.items():
                called = asyncio.get_running_loop().create_future()

                def callback(call: Call = call, called: asyncio.Future[None] = called) -> None:
                    try:
                        called.set_result(_send(call, file))  # type: ignore[func-returns-value]
                    except BaseException as error:
                        called.set_exception(error)

                asyncio.get_running_loop().call_soon(callback)
                with pytest.raises(RuntimeError, match="task"):
                    await called
                assert not file.closed, name
            assert await file.pread(10, 0) == data[:10]

    asyncio.run(main())


def test_calls_in_an_instrument_of_trio_do_not_begin(disk: Path) -> None:
    path, data = make_file(disk)

    class Instrument(trio.abc.Instrument):
        def __init__(self, file: AsyncFile) -> None:
            self._file: AsyncFile = file
            self.errors: dict[str, BaseException] = {}

        def before_io_wait(self, timeout: float) -> None:
            for name, call in CALLS.items():
                try:
                    _send(call, self._file)
                except BaseException as error:
                    self.errors[name] = error

    async def main() -> None:
        async with AIOContext() as context, open_aio(path, "r+b", context=context) as file:
            instrument = Instrument(file)
            trio.lowlevel.add_instrument(instrument)
            while not instrument.errors:
                await trio.lowlevel.checkpoint()
            trio.lowlevel.remove_instrument(instrument)
            assert {type(error) for error in instrument.errors.values()} == {RuntimeError}
            assert instrument.errors.keys() == CALLS.keys()
            assert not file.closed
            assert await file.pread(10, 0) == data[:10]

    trio.run(main)


def test_current_context_in_a_callback_says_where_to_call_it() -> None:
    async def main() -> None:
        called = asyncio.get_running_loop().create_future()

        def callback() -> None:
            with pytest.raises(RuntimeError, match="in a task, not in a callback"):
                current_context()
            with pytest.raises(RuntimeError, match="in a task, not in a callback"):
                current_backend()
            called.set_result(None)

        asyncio.get_running_loop().call_soon(callback)
        await called

    asyncio.run(main())


async def _leave_open(path: Path, direct: bool) -> AsyncFile:
    context = await AIOContext().__aenter__()
    return await open_aio(path, "r+b", direct=direct, context=context)


def _run(library: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return trio.run(function, *args) if library == "trio" else asyncio.run(function(*args))  # type: ignore[arg-type]


LIBRARIES = ("trio", "asyncio")


@DIRECT
@pytest.mark.parametrize("then", LIBRARIES)
@pytest.mark.parametrize("first", LIBRARIES)
def test_file_of_an_earlier_run(disk: Path, direct: bool, first: str, then: str) -> None:
    path, data = make_file(disk)
    file = _run(first, _leave_open, path, direct)

    async def use() -> None:
        for name, call in CALLS.items():
            if "aclose" not in name:
                with pytest.raises(RuntimeError, match="AIOContext"):
                    await call(file)
        for _ in range(2):
            await file.aclose()
            await file.context.aclose()

    _run(then, use)
    assert file.closed
    assert path.read_bytes() == data


@pytest.mark.parametrize("then", LIBRARIES)
@pytest.mark.parametrize("first", LIBRARIES)
def test_chunks_and_text_of_an_earlier_run_can_be_closed(disk: Path, first: str, then: str) -> None:
    path, _ = make_file(disk)

    async def leave_open() -> Any:
        context = await AIOContext().__aenter__()
        file = await open_aio(path, context=context)
        chunks = file.chunks(10, depth=2)
        await chunks.__anext__()
        return file, chunks, await open_aio(path, "r", encoding="latin-1", context=context)

    async def close() -> None:
        for opened in (chunks, text, file):
            await opened.aclose()

    file, chunks, text = _run(first, leave_open)
    _run(then, close)
    assert file.closed
    assert text.closed
