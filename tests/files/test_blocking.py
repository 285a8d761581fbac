"""`file.blocking()`: a synchronous file on the same open file, for code that runs in a thread."""

from __future__ import annotations

import csv
import gzip
import io
import os
import random
import tarfile
import threading
import zipfile
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy
import pytest
from anyio import CancelScope, create_task_group, to_thread
from anyio.lowlevel import checkpoint

from trio_aio import open_aio

from ..support.files import BLOCK, content, is_open, make_file
from ..support.programs import run as run_program
from ..support.tasks import until_blocked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


def result_of(call: Callable[[Any], Any], file: Any) -> Any:
    try:
        return call(file)
    except OSError as error:
        return type(error), error.errno


@pytest.mark.parametrize("direct", [False, True])
async def test_blocking_file_equals_a_raw_file_of_pythons(disk: Path, direct: bool) -> None:
    """Random calls on both give the same results, positions and files."""
    path, _ = make_file(disk, 5 * BLOCK + 77)
    other = disk / "model"
    other.write_bytes(path.read_bytes())
    rng = random.Random(direct)

    def compare(ours: io.RawIOBase, theirs: io.RawIOBase) -> None:
        for _ in range(300):
            position = rng.choice([0, 1, BLOCK, BLOCK - 1, rng.randrange(8 * BLOCK)])
            size = rng.choice([0, 1, BLOCK, BLOCK + 1, 3 * BLOCK, rng.randrange(3 * BLOCK)])
            data = content(size, seed=size)
            calls: list[Callable[[Any], Any]] = [
                lambda file, p=position: file.seek(p),
                lambda file, p=position: file.seek(-min(p, 100), os.SEEK_END),
                lambda file, s=size: file.read(s),
                lambda file, s=size: (lambda buffer: (file.readinto(buffer), bytes(buffer)))(bytearray(s)),
                lambda file: file.readall(),
                lambda file: file.readline(100),
                lambda file, d=data: file.write(d),
                lambda file, s=size: file.truncate(s),
            ]
            call = rng.choice(calls)
            assert result_of(call, ours) == result_of(call, theirs)
            assert ours.tell() == theirs.tell()
            assert path.read_bytes() == other.read_bytes()

    async with open_aio(path, "r+b", direct=direct) as file:
        with other.open("r+b", buffering=0) as theirs:
            await to_thread.run_sync(compare, file.blocking(), theirs)


def libraries(view: io.RawIOBase, path: Path) -> None:
    with zipfile.ZipFile(view, "w") as archive:  # type: ignore[arg-type]
        archive.writestr("name", b"x" * 100_000)
    with zipfile.ZipFile(view) as archive:  # type: ignore[arg-type]
        assert archive.read("name") == b"x" * 100_000
    assert not view.closed
    for mode in ("w", "w:gz"):
        view.seek(0)
        view.truncate()
        with tarfile.open(fileobj=view, mode=mode) as tar:  # type: ignore[call-overload]
            tar.add(path, "member")
        view.seek(0)
        with tarfile.open(fileobj=view) as tar:  # type: ignore[call-overload]
            assert tar.getnames() == ["member"]
    view.seek(0)
    view.truncate()
    with gzip.GzipFile(fileobj=view, mode="wb") as packed:
        packed.write(b"a,b\n" * 1000)
    view.seek(0)
    with gzip.GzipFile(fileobj=view) as packed:
        assert len(list(csv.reader(io.TextIOWrapper(packed)))) == 1000
    array = numpy.arange(10_000)
    view.seek(0)
    view.truncate()
    numpy.save(view, array)
    view.seek(0)
    assert (numpy.load(view) == array).all()


@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("direct", [False, True])
async def test_libraries_read_and_write_it_in_a_thread(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk)
    async with open_aio(disk / "archive", "w+b", direct=direct) as file:
        await to_thread.run_sync(libraries, file.blocking(), path)


@pytest.mark.backends("trio", "asyncio")
def kind_of(call: Callable[[Any], Any], file: Any) -> Any:
    """Return what a call gives, or the kind of its error."""
    try:
        return call(file)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        return type(error)


@pytest.mark.parametrize("direct", [False, True])
async def test_arguments_are_taken_and_refused_as_by_a_raw_file_of_pythons(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk, BLOCK)
    other = disk / "model"
    other.write_bytes(path.read_bytes())
    calls: list[Callable[[Any], Any]] = []
    for size in (None, -1, -5, 3, "a", 1.5, 1 << 70):
        calls += [
            lambda file, size=size: file.seek(0),
            lambda file, size=size: file.read(size),
            lambda file, size=size: file.seek(0),
            lambda file, size=size: file.readline(size),
            lambda file, size=size: file.readlines(size),
        ]
    calls += [lambda file, wrong=wrong: file.seek(wrong) for wrong in (None, "a", 1.5, -1)]
    calls += [lambda file, wrong=wrong: file.seek(0, wrong) for wrong in (None, "a", 1.5)]
    calls += [lambda file, wrong=wrong: file.truncate(wrong) for wrong in ("a", 1.5, -1)]
    calls += [lambda file, wrong=wrong: file.write(wrong) for wrong in ("a", None, 3, [1])]
    calls += [lambda file, wrong=wrong: file.readinto(wrong) for wrong in (b"x", memoryview(b"x"), "a", None, 3)]
    calls += [
        lambda file: file.seek(0),
        lambda file: file.truncate(None),
        lambda file: file.writelines([b"a", bytearray(b"b")]),
        lambda file: file.writelines("ab"),
        lambda file: file.write(numpy.arange(5)),
        lambda file: file.write(numpy.array(7)),
        lambda file: file.write(numpy.zeros((0, 3))),
        lambda file: file.write(numpy.zeros(3, "M8[s]")),
        lambda file: file.write(numpy.zeros(3, [("O", "i4"), ("b", "f8")])),
        lambda file: file.seek(0),
        lambda file: file.readinto(numpy.zeros((2, 3))),
        lambda file: file.readinto(numpy.zeros((0, 3))),
        lambda file: file.readinto(numpy.array(7)),
        lambda file: file.readinto(numpy.zeros(3, "M8[s]")),
    ]

    def compare(ours: io.RawIOBase, theirs: io.RawIOBase) -> None:
        for number, call in enumerate(calls):
            assert kind_of(call, ours) == kind_of(call, theirs), number
            assert ours.tell() == theirs.tell(), number

    async with open_aio(path, "r+b", direct=direct) as file:
        with file.blocking() as ours, io.FileIO(other, "r+") as theirs:
            await to_thread.run_sync(compare, ours, theirs)
    assert path.read_bytes() == other.read_bytes()


async def test_memory_that_is_not_contiguous_or_has_objects_is_refused_as_by_async_file(disk: Path) -> None:
    path, data = make_file(disk, BLOCK)
    scattered = [memoryview(bytearray(9))[::2], numpy.zeros((2, 3), order="F"), numpy.zeros(9)[::-2], numpy.zeros((2, 2), "M8[s]").T]
    objects = [numpy.zeros(2, object), numpy.zeros(2, [("n", "i4"), ("o", "O")])]
    async with open_aio(path, "r+b") as file:
        with file.blocking(allow_loop=True) as blocking:
            for error, buffers in ((BufferError, scattered), (TypeError, objects)):
                for buffer in buffers:
                    for name in ("readinto", "write"):
                        with pytest.raises(error):
                            await getattr(file, name)(buffer)
                        with pytest.raises(error):
                            getattr(blocking, name)(buffer)
            assert blocking.tell() == await file.tell() == 0
    assert path.read_bytes() == data


async def test_cursor_is_its_own(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path) as file:
        await file.read(100)
        view, second = file.blocking(), file.blocking(position=50)
        assert await to_thread.run_sync(view.read, 10) == data[:10]
        assert await to_thread.run_sync(second.read, 10) == data[50:60]
        assert await file.tell() == 100
        assert await file.read(10) == data[100:110]
        assert (view.tell(), second.tell()) == (10, 60)


@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("mode", ["rb", "r"])
async def test_wrapped_is_made_once_and_starts_at_the_cursor(disk: Path, mode: str) -> None:
    path = disk / "file"
    path.write_bytes(b"line\n" * 100_000)
    async with open_aio(path, mode) as file:
        await file.seek(50)
        assert file.wrapped is file.wrapped
        assert file.wrapped.tell() == 50
        assert await to_thread.run_sync(file.wrapped.readline) == b"line\n"


@pytest.mark.backends("trio", "asyncio")
async def test_attributes_are_those_of_the_file(disk: Path) -> None:
    path, _ = make_file(disk)
    for mode in ("rb", "ab", "r+b"):
        async with open_aio(path, mode) as file:
            view = file.blocking()
            assert isinstance(view, io.RawIOBase)
            assert (view.name, view.mode, view.fileno()) == (file.name, file.mode, file._descriptor.fd)
            assert (view.readable(), view.writable(), view.seekable(), view.isatty()) == (mode != "ab", mode != "rb", True, False)
            for call, allowed in ((partial(view.read, 1), view.readable()), (partial(view.write, b""), view.writable())):
                if not allowed:
                    with pytest.raises(io.UnsupportedOperation):
                        await to_thread.run_sync(call)
            with pytest.raises(ValueError, match="offset"):
                file.blocking(-1)


async def test_call_on_the_event_loops_thread_is_refused(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b") as file:
        view = file.blocking()
        calls: list[Callable[[], Any]] = [partial(view.read, 1), view.readall, partial(view.write, b"x"), view.truncate]
        calls += [partial(view.readinto, bytearray(1)), partial(view.seek, 0, os.SEEK_END), view.readline]
        for call in calls:
            with pytest.raises(RuntimeError, match="to_thread"):
                call()
        assert view.seek(5) == view.tell() == 5
        assert file.blocking(allow_loop=True).read(10) == data[:10]


async def test_write_in_a_thread_is_seen_by_the_read_ahead(disk: Path) -> None:
    path = disk / "file"
    path.write_bytes(b"old\n" * 50_000)
    async with open_aio(path, "r+b") as file, open_aio(path, "r", encoding="ascii") as text:
        view = file.blocking(4)
        for reader in (file, text):
            assert (await reader.readline()).strip() in (b"old", "old")
        await to_thread.run_sync(view.write, b"new\n" * 50_000)
        assert await file.readline() == b"new\n"
        assert await file.peek() == (b"new\n" * 50_000)[: len(await file.peek())]
        await to_thread.run_sync(view.truncate, 8)
        assert await file.readline() == b""
        await text.seek(0)
        assert await text.read() == "old\nnew\n"


@pytest.mark.backends("trio", "asyncio")
async def test_append_goes_to_the_end(disk: Path) -> None:
    path, data = make_file(disk, 100)
    for direct in (False, True):
        path.write_bytes(data)
        async with open_aio(path, "a+b", direct=direct) as file:
            view = file.blocking()
            assert await to_thread.run_sync(view.write, b"end") == 3
            assert view.tell() == 103
        assert path.read_bytes() == data + b"end"


async def test_aclose_waits_for_a_call_and_refuses_later_ones(disk: Path) -> None:
    path, _ = make_file(disk)
    entered, release = threading.Event(), threading.Event()
    for cancelled in (False, True):
        entered.clear()
        release.clear()
        file = await open_aio(path)
        fd, view = file._descriptor.fd, file.blocking()

        def hold(view: Any = view, fd: int = fd) -> None:
            with view.lock:
                entered.set()
                release.wait()
                os.fstat(fd)

        async with create_task_group() as group:
            group.start_soon(to_thread.run_sync, hold)
            while not entered.is_set():
                await checkpoint()
            with CancelScope() as scope:
                async with create_task_group() as closing:

                    @closing.start_soon
                    async def end(cancelled: bool = cancelled, scope: CancelScope = scope, fd: int = fd) -> None:
                        await until_blocked()
                        if cancelled:
                            scope.cancel()
                        assert is_open(fd)
                        release.set()

                    await file.aclose()
        assert scope.cancelled_caught == cancelled
        assert not is_open(fd)
        for call in (view.read, view.tell, view.fileno, partial(view.write, b"x"), view.readable):
            with pytest.raises(ValueError, match="closed"):
                await to_thread.run_sync(call)
        view.close()


@pytest.mark.backends("trio", "asyncio")
async def test_close_of_it_leaves_the_file_open(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path) as file:
        with file.blocking() as view:
            pass
        assert view.closed
        with pytest.raises(ValueError, match="closed"):
            view.read(1)
        assert await file.read(10) == data[:10]


@pytest.mark.backends("trio", "asyncio")
async def test_it_keeps_its_file_open(disk: Path) -> None:
    path, data = make_file(disk)
    file = await open_aio(path)
    view = file.blocking()
    fd = view.fileno()
    del file
    assert await to_thread.run_sync(view.read, 10) == data[:10]
    assert is_open(fd)
    await view._owner.aclose()


async def test_several_threads_share_one_object(disk: Path) -> None:
    path = disk / "file"
    async with open_aio(path, "w+b") as file:
        view = file.blocking()

        def write(number: int) -> None:
            for _ in range(200):
                view.write(b"%08d" % number)

        async with create_task_group() as group:
            for number in range(4):
                group.start_soon(to_thread.run_sync, write, number)
        written = path.read_bytes()
        assert sorted(written[i : i + 8] for i in range(0, len(written), 8)) == sorted(b"%08d" % n for n in range(4) for _ in range(200))


@pytest.mark.parametrize("call", ["read(1)", "write(b'x')", "readall()", "truncate(0)", "seek(0)", "tell()"])
def test_child_of_fork_is_refused(disk: Path, call: str) -> None:
    path, _ = make_file(disk)
    program = f"""
    import signal

    async def main():
        async with open_aio(path, "r+b") as file:
            view = file.blocking()
            view.lock.acquire()  # as a thread of the parent does that is in a call
            child = os.fork()
            if not child:
                signal.alarm(30)  # a child that hangs ends too
                try:
                    view.{call}
                except RuntimeError as error:
                    os._exit("fork" in str(error))
                os._exit(9)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            view.lock.release()

    warnings.simplefilter("ignore", DeprecationWarning)
    trio.run(main)
    """
    assert run_program(program, path) == "1\n"


async def test_error_names_the_file_and_what_was_written(disk: Path, file_size_limit: int) -> None:
    path = disk / "file"
    async with open_aio(path, "wb") as file:
        view = file.blocking(file_size_limit - 10)
        with pytest.raises(OSError, match="too large") as caught:
            await to_thread.run_sync(view.write, bytes(100))
        assert caught.value.characters_written == 10  # type: ignore[attr-defined]
        assert view.tell() == file_size_limit


async def test_error_of_an_adopted_file_names_its_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(os.open(path, os.O_RDONLY)) as file:
        with file.blocking(allow_loop=True) as view, pytest.raises(io.UnsupportedOperation, match=rf"'<fd {file.fileno()}>' is not open"):
            view.write(b"x")
