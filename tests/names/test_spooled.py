"""`SpooledTemporaryFile` used by several tasks at once, truncated, and as a file of anyio."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint

from trio_aio import SpooledTemporaryFile, TemporaryFile
from trio_aio.testing import FaultyContext

from ..support.tasks import Noting, cancelled_while_blocked, until_blocked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]
on_asyncio = pytest.mark.backends("asyncio")


async def contents(file: Any) -> Any:
    await file.seek(0)
    return await file.read()


async def until_held(hang: Any) -> None:
    while not hang.held:
        await checkpoint()
    await until_blocked()


def first_move(context: FaultyContext) -> Any:
    """Let the first move to disk hang: while the file is made, and empty."""
    return context.hang(operation="open", times=1)


# ---- while another task's call moves it to disk


@pytest.mark.parametrize("move", ["rollover", "write", "truncate"])
async def test_calls_during_a_move_are_served_on_disk_in_their_order(tmp_path: Path, move: str) -> None:
    done: list[str] = []

    async def call(name: str, *arguments: Any) -> None:
        await getattr(file, name)(*arguments)
        done.append(name)

    async with FaultyContext() as context, SpooledTemporaryFile[bytes](8, dir=str(tmp_path), context=context) as file:
        await file.write(b"0123")
        async with create_task_group() as tasks:
            with first_move(context) as hang:  # inside, or a failed test never ends
                tasks.start_soon(call, move, *{"rollover": [], "write": [b"456789"], "truncate": [10]}[move])
                await until_held(hang)
                for name, arguments in (("seek", [0, os.SEEK_END]), ("write", [b"ab"]), ("writelines", [[b"c", b"d"]]), ("tell", [])):
                    tasks.start_soon(call, name, *arguments)
                    await until_blocked()
                assert not done
                hang.release()
        assert done == [move, "seek", "write", "writelines", "tell"]
        assert file.rolled
        start = {"rollover": b"0123", "write": b"0123456789", "truncate": b"0123" + bytes(6)}[move]
        assert await contents(file) == start + b"abcd"


async def test_call_behind_a_failed_move_is_served_in_memory(tmp_path: Path) -> None:
    async with FaultyContext() as context, SpooledTemporaryFile[bytes](dir=str(tmp_path), context=context) as file:
        await file.write(b"0123")
        async with create_task_group() as tasks:
            with first_move(context) as hang:  # inside, or a failed test never ends

                async def move() -> None:
                    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                        await file.rollover()

                tasks.start_soon(move)
                await until_held(hang)
                tasks.start_soon(file.write, b"ab")
                await until_blocked()
                hang.release(errno.ENOSPC)
        assert not file.rolled
        assert await contents(file) == b"0123ab"


async def test_call_that_is_cancelled_while_it_waits_for_a_move_has_no_effect(tmp_path: Path) -> None:
    async with FaultyContext() as context, SpooledTemporaryFile[bytes](dir=str(tmp_path), context=context) as file:
        await file.write(b"0123")
        async with create_task_group() as tasks:
            with first_move(context) as hang:  # inside, or a failed test never ends
                tasks.start_soon(file.rollover)
                await until_held(hang)
                for call in (lambda: file.write(b"ab"), file.rollover, lambda: file.truncate(1)):
                    assert await cancelled_while_blocked(call)
                hang.release()
        assert await contents(file) == b"0123"


async def test_close_waits_for_a_move_and_calls_behind_it_fail(tmp_path: Path) -> None:
    order: list[str] = []
    async with FaultyContext() as context:
        file = SpooledTemporaryFile[bytes](dir=str(tmp_path), context=context)
        await file.write(b"0123")

        async def move() -> None:
            await file.rollover()
            order.append("moved")

        async def close() -> None:
            await file.aclose()
            order.append("closed")

        async def refused() -> None:
            with pytest.raises(ValueError, match="closed"):
                await file.write(b"ab")
            order.append("refused")

        async with create_task_group() as tasks:
            with first_move(context) as hang:  # inside, or a failed test never ends
                tasks.start_soon(move)
                await until_held(hang)
                tasks.start_soon(refused)
                await until_blocked()
                tasks.start_soon(close)
                await until_blocked()
                assert file.closed
                assert order == []
                hang.release()
        assert order[0] == "moved"
        assert set(order) == {"moved", "closed", "refused"}
        assert context.statistics().in_flight == 0
        await file.aclose()


@on_asyncio
async def test_native_cancellation_of_a_close_that_waits_is_raised_when_it_is_closed(tmp_path: Path) -> None:
    async with FaultyContext() as context:
        file = SpooledTemporaryFile[bytes](dir=str(tmp_path), context=context)
        with first_move(context) as hang:
            moving = asyncio.ensure_future(file.rollover())
            await until_held(hang)
            closing = Noting(file.aclose)
            await until_blocked()
            for _ in range(2):
                closing.task.cancel("the test's")
                await until_blocked()
                assert not closing.task.done()
            hang.release()
            await moving
            assert (await closing.cancellation()).args == ("the test's",)
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            file._file.fileno()


@on_asyncio
async def test_native_cancellation_of_a_move_changes_nothing(tmp_path: Path) -> None:
    async with FaultyContext() as context, SpooledTemporaryFile[bytes](dir=str(tmp_path), context=context) as file:
        await file.write(b"0123")
        with first_move(context) as hang:
            moving = asyncio.ensure_future(file.rollover())
            await until_held(hang)
            moving.cancel()
            hang.release()
            with pytest.raises(asyncio.CancelledError):
                await moving
        assert not file.rolled
        assert await contents(file) == b"0123"
        await file.rollover()
        assert await contents(file) == b"0123"


@pytest.mark.parametrize("name", ["rollover", "write", "writelines", "truncate"])
async def test_move_calls_the_rollover_of_a_subclass_as_tempfile_does(tmp_path: Path, name: str) -> None:
    class Counted(SpooledTemporaryFile[bytes]):
        moves = 0

        async def rollover(self) -> None:
            self.moves += 1
            await super().rollover()

    async with Counted(8, dir=str(tmp_path)) as file:
        await getattr(file, name)(*{"rollover": [], "write": [bytes(9)], "writelines": [[bytes(9)]], "truncate": [9]}[name])
        assert (file.rolled, file.moves) == (True, 1)
        await file.write(b"more")


# ---- truncate


def truncations(first: Any, more: Any) -> list[tuple[Any, ...]]:
    """Return calls of a file with arguments. first, more: what is written, as the mode wants it."""
    return [
        ("write", first),
        ("truncate", 40),
        ("tell",),
        ("read",),
        ("seek", 5),
        ("truncate", 60),
        ("tell",),
        ("write", more),
        ("tell",),
        ("truncate", 3),
        ("tell",),
        ("seek", 0),
        ("read",),
        ("truncate", 3),
        ("seek", 0, os.SEEK_END),
        ("seek", 20),
        ("truncate", None),
        ("tell",),
        ("seek", 0),
        ("read",),
        ("truncate", 0),
        ("seek", 0, os.SEEK_END),
        ("truncate", 1),
        ("seek", 0),
        ("read",),
    ]


@pytest.mark.parametrize("max_size", [0, 10, 50, 1000])
@pytest.mark.parametrize("mode", ["w+b", "w+"])
async def test_truncated_file_equals_a_file_on_disk(tmp_path: Path, mode: str, max_size: int) -> None:
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    first, more = ("first line\nsecond\n", "more") if text else (b"first line\nsecond\n", b"more")
    async with (
        TemporaryFile(mode, dir=str(tmp_path), **text) as theirs,  # type: ignore[arg-type]
        SpooledTemporaryFile[Any](max_size, mode, dir=str(tmp_path), **text) as ours,  # type: ignore[arg-type]
    ):
        largest = 0
        for step, (name, *arguments) in enumerate(truncations(first, more)):
            wanted = await getattr(theirs, name)(*arguments)
            assert await getattr(ours, name)(*arguments) == wanted, (step, name)
            largest = max(largest, os.fstat(theirs.fileno()).st_size)
            assert ours.rolled == (0 < max_size < largest), (step, name)


async def test_truncate_far_behind_the_end_takes_no_memory(tmp_path: Path) -> None:
    async with SpooledTemporaryFile[bytes](100, dir=str(tmp_path)) as file:
        await file.write(b"x")
        assert await file.truncate(1 << 40) == 1 << 40
        assert file.rolled
        assert await file.tell() == 1
        assert os.fstat(file.fileno()).st_size == 1 << 40


@pytest.mark.parametrize("rolled", [False, True])
async def test_truncate_to_a_negative_size_is_invalid(tmp_path: Path, rolled: bool) -> None:
    async with SpooledTemporaryFile[bytes](dir=str(tmp_path)) as file:
        await file.write(b"abc")
        if rolled:
            await file.rollover()
        with pytest.raises(OSError, match="Invalid argument") as caught:
            await file.truncate(-1)
        assert caught.value.errno == errno.EINVAL
        assert await contents(file) == b"abc"


# ---- what it is


@pytest.mark.parametrize("mode", ["w+b", "w+"])
async def test_attributes_are_those_of_the_file_it_becomes(tmp_path: Path, mode: str) -> None:
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "latin-1", "errors": "replace", "newline": "", "buffering": 1}
    names = ["readable", "writable", "seekable", "isatty", "limiter", "encoding", "errors", "newlines", "line_buffering", "write_through"]

    def facts(file: Any) -> dict[str, Any]:
        found = {name: getattr(file, name, "none") for name in names}
        return {name: value() if callable(value) else value for name, value in found.items()}

    async with (
        TemporaryFile(mode, dir=str(tmp_path), **text) as plain,
        SpooledTemporaryFile[Any](0, mode, dir=str(tmp_path), **text) as file,
    ):
        wanted = facts(plain)
        assert wanted["encoding"] == text.get("encoding", "none")
        assert facts(file) == wanted
        await file.rollover()
        assert facts(file) == wanted
    for name in ("readable", "writable", "seekable", "isatty", "fileno"):
        with pytest.raises(ValueError, match="closed"):
            getattr(file, name)()
    with pytest.raises(ValueError, match="closed"):
        await file.flush()


async def test_wrapped_is_the_file_underneath(tmp_path: Path) -> None:
    async with SpooledTemporaryFile[bytes](dir=str(tmp_path)) as file:
        await file.write(b"abc")
        memory = file.wrapped
        assert isinstance(memory, io.BytesIO)
        assert memory.getvalue() == b"abc"
        with memory.getbuffer():
            await file.rollover()
            assert file.wrapped is file._file.wrapped
        assert await contents(file) == b"abc"
        moved = SpooledTemporaryFile[str](0, "w+", encoding="utf-8", dir=str(tmp_path))
        text = moved.wrapped
        assert isinstance(text, io.TextIOWrapper)
        await moved.rollover()
        assert text.closed
        await moved.aclose()


async def test_file_that_is_opened_for_writing_only_can_be_read_in_memory_as_that_of_tempfile(tmp_path: Path) -> None:
    with tempfile.SpooledTemporaryFile(0, "wb", dir=tmp_path) as theirs:
        async with SpooledTemporaryFile[bytes](0, "wb", dir=str(tmp_path)) as ours:
            for rolled in (False, True):
                if rolled:
                    theirs.rollover()
                    await ours.rollover()
                assert (ours.readable(), ours.writable()) == (not rolled, True)
                assert (theirs._file.readable(), theirs._file.writable()) == (not rolled, True)  # its own are there from Python 3.11 on
            with pytest.raises(io.UnsupportedOperation, match="read"):
                theirs.read()
            with pytest.raises(io.UnsupportedOperation, match="reading"):
                await ours.read()


class _Curious(SpooledTemporaryFile[Any]):
    """Its rollover uses the file."""

    async def rollover(self) -> None:
        self.position = await self.tell()
        await self.write(b"")
        await super().rollover()


async def test_rollover_of_a_subclass_may_use_the_file_and_no_other_task_comes_between() -> None:
    for _ in range(10):
        async with _Curious(max_size=10) as file:
            async with create_task_group() as tasks:
                for data in (b"A" * 11, b"B" * 5, b"C" * 5):
                    tasks.start_soon(file.write, data)
            assert file.rolled
            await file.seek(0)
            assert sorted(await file.read()) == sorted(b"A" * 11 + b"B" * 5 + b"C" * 5)
