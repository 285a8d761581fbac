"""trio's mock clock stands still while a request is in flight, and jumps again when nothing is."""

from __future__ import annotations

import math
import os
import select
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trio_aio
from trio_aio import AIOContext, Path, open_aio
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK, make_file
from ..support.page_cache import evict
from ..support.pipes import empty_pipe, full_pipe

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

    from trio_aio import AsyncFile

HOUR = 3600


def run(main: Callable[[], Awaitable[Any]], threshold: float = 0) -> float:
    """Run a function under a clock that jumps. Return the virtual time that has passed."""
    clock = trio.testing.MockClock(autojump_threshold=threshold)
    trio.run(main, clock=clock)
    assert clock.autojump_threshold == threshold
    return clock.current_time()


async def all_chunks(file: AsyncFile) -> None:
    async for _ in file.chunks(BLOCK, depth=2):
        pass


async def write_behind(file: AsyncFile) -> None:
    async with file.writer(size=1024, depth=2) as writer:
        await writer.write(bytes(BLOCK))


async def reopen(file: AsyncFile) -> None:
    async with open_aio(file.name, "r+b"):
        pass


async def reopen_by_opener(file: AsyncFile) -> None:
    async with open_aio(file.name, opener=os.open):
        pass


async def own_context(file: AsyncFile) -> None:
    async with AIOContext() as context, open_aio(file.name, context=context) as same:
        await same.pread(BLOCK, 0)


async def listing(file: AsyncFile) -> None:
    async for _ in trio_aio.scandir(os.path.dirname(file.name), stat=True):
        pass


async def tree(file: AsyncFile) -> None:
    await Path(file.name).parent.rglob("*")


async def temporary(file: AsyncFile) -> None:
    async with trio_aio.NamedTemporaryFile(dir=os.path.dirname(file.name)) as made:
        await made.write(b"data")


async def lines(file: AsyncFile) -> None:
    async for _ in file:
        pass


CALLS: dict[str, Callable[[AsyncFile], Awaitable[Any]]] = {
    "pread": lambda file: file.pread(BLOCK, 0),
    "pread, large": lambda file: file.pread(16 * BLOCK, 0),
    "preadinto": lambda file: file.preadinto(bytearray(BLOCK), 0),
    "preadv": lambda file: file.preadv([bytearray(100), bytearray(100)], 0),
    "pwrite": lambda file: file.pwrite(bytes(BLOCK), 0),
    "pwrite, unaligned": lambda file: file.pwrite(b"x" * 100, 1),
    "pwritev": lambda file: file.pwritev([bytes(100), bytes(100)], 0),
    "read": lambda file: file.read(BLOCK),
    "readall": lambda file: file.readall(),
    "lines": lines,
    "write": lambda file: file.write(bytes(BLOCK)),
    "writelines": lambda file: file.writelines([b"a\n", b"b\n"]),
    "truncate": lambda file: file.truncate(64 * BLOCK),
    "fsync": lambda file: file.fsync(),
    "fdatasync": lambda file: file.fdatasync(),
    "stat": lambda file: file.stat(),
    "size": lambda file: file.size(),
    "fallocate": lambda file: file.fallocate(0, BLOCK),
    "read_blocks": lambda file: file.read_blocks([0, BLOCK, 3 * BLOCK], BLOCK),
    "read_ranges": lambda file: file.read_ranges([(0, 10), (3 * BLOCK, BLOCK)]),
    "write_ranges": lambda file: file.write_ranges([(0, bytes(1024)), (1024, bytes(100))]),
    "chunks": all_chunks,
    "writer": write_behind,
    "open and close": reopen,
    "opener": reopen_by_opener,
    "context": own_context,
    "read_bytes": lambda file: trio_aio.read_bytes(file.name),
    "write_bytes": lambda file: trio_aio.write_bytes(f"{file.name}.new", b"data", durable=True, atomic=True),
    "read_files": lambda file: trio_aio.read_files([file.name] * 3),
    "scandir": listing,
    "rglob": tree,
    "mkdir": lambda file: Path(f"{file.name}.d").mkdir(exist_ok=True),
    "resolve": lambda file: Path(file.name).resolve(),
    "copy_file": lambda file: trio_aio.copy_file(file.name, f"{file.name}.copy"),
    "temporary file": temporary,
}


@pytest.mark.parametrize("threshold", [0, 0.001])
@pytest.mark.parametrize("name", CALLS)
def test_no_timeout_expires_around_a_call(disk: pathlib.Path, name: str, threshold: float) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        for direct in (False, True):
            async with open_aio(path, "r+b", direct=direct) as file:
                for turn in range(8):
                    if turn % 2:
                        evict(path)
                    with trio.fail_after(HOUR):
                        await CALLS[name](file)
                    await file.seek(0)

    assert run(main, threshold) == 0


def test_no_timeout_expires_around_a_thousand_calls_at_once(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async def calls(number: int) -> None:
            for turn in range(30):
                with trio.fail_after(HOUR):
                    await CALLS[[*CALLS][(number * 7 + turn) % 14]](files[number % 2])

        async with open_aio(path, "r+b") as cached, open_aio(path, "r+b", direct=True) as direct:
            files = cached, direct
            async with trio.open_nursery() as nursery:
                for number in range(36):
                    nursery.start_soon(calls, number)

    assert run(main) == 0


def test_clock_jumps_when_nothing_is_in_flight(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with open_aio(path) as file:
            await file.pread(BLOCK, 0)
            await trio.sleep(HOUR)

    assert run(main) == HOUR


def test_clock_stands_still_while_a_worker_has_a_request() -> None:
    async def main() -> None:
        async with AIOContext(max_workers=1) as context:
            with full_pipe() as pipe, trio.fail_after(60):
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def release() -> None:
                        # Virtual time does not pass: another task of the run goes on all the same.
                        while not pipe.begun:
                            await trio.lowlevel.checkpoint()
                        await trio.to_thread.run_sync(time.sleep, 0.01)
                        pipe.release()

                    with pytest.raises(OSError, match="Illegal seek"):
                        await context._core.submit_and_wait(pipe.request())

    assert run(main) == 0


def test_poll_does_not_hold_the_clock() -> None:
    async def main() -> None:
        async with AIOContext() as context:
            with empty_pipe() as (reader, _), trio.move_on_after(60) as scope:
                await context.poll(reader, select.POLLIN)
            assert scope.cancelled_caught

    assert run(main) == 60


@pytest.mark.parametrize("beside", [False, True])
def test_hung_request_of_a_test_does_not_hold_the_clock(disk: pathlib.Path, beside: bool) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        async with FaultyContext(max_in_flight=2) as context, open_aio(path, context=context, abandon_on_cancel=True) as file:
            with context.hang(operation="read", file=path) as hang:
                with trio.move_on_after(5) as scope:
                    async with trio.open_nursery() as nursery:
                        # With four of them, two wait for a slot behind those that hang.
                        for _ in range(4 if beside else 1):
                            nursery.start_soon(file.pread, 100, 0)
                assert scope.cancelled_caught
                hang.release()
            assert await file.pread(100, 0) == data[:100]

    assert run(main) == 5


def test_released_request_holds_the_clock_again(disk: pathlib.Path) -> None:
    path, data = make_file(disk)

    async def main() -> None:
        async with FaultyContext() as context, open_aio(path, context=context) as file:
            with context.hang(operation="read") as hang:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def release() -> None:
                        await trio.sleep(10)
                        hang.release()

                    with trio.fail_after(11):
                        assert await file.pread(100, 0) == data[:100]

    assert run(main) == 10


def test_threshold_that_the_program_sets_meanwhile_stays() -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> None:
        async with AIOContext(max_workers=1) as context:
            with full_pipe() as pipe:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def release() -> None:
                        while not pipe.begun:
                            await trio.lowlevel.checkpoint()
                        assert clock.autojump_threshold == math.inf
                        clock.autojump_threshold = 2.5
                        pipe.release()

                    with pytest.raises(OSError, match="Illegal seek"):
                        await context._core.submit_and_wait(pipe.request())

    trio.run(main, clock=clock)
    assert clock.autojump_threshold == 2.5


def test_clock_without_jumps_is_left_alone(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with open_aio(path) as file:
            await file.fsync()

    assert run(main, math.inf) == 0


def test_real_clock_has_no_instrument_for_it(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with open_aio(path) as file:
            backend: Any = file.context._core.backend
            assert backend._clock_hold is None

    trio.run(main)


def test_wait_all_tasks_blocked_counts_a_task_in_a_file_call(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)

    async def main() -> None:
        async with FaultyContext() as context, open_aio(path, context=context) as file:
            with context.hang(operation="read") as hang:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(file.pread, 100, 0)
                    await trio.testing.wait_all_tasks_blocked()
                    assert hang.held == 1
                    hang.release()

    run(main)
