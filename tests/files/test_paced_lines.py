"""An `async for` over lines lets other tasks run at the latest one millisecond after they last did, whatever its body does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

import trio_aio._files.paced
from trio_aio import open_aio

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]

MODES = [("rb", {}), ("r", {"encoding": "ascii"}), ("r", {"encoding": "utf-16"}), ("r", {"encoding": "ascii", "newline": ""})]
LIMIT = 0.001


class Time:
    """A clock that passes only when the body of the loop works."""

    def __init__(self) -> None:
        self.now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(trio_aio._files.paced, "perf_counter", clock)
    return clock


async def longest_wait(file: Any, time: Time, works: list[float]) -> tuple[int, float]:
    """Iterate over a file whose lines take the loop's body so long, in turn. Return the lines, and how long another task had to wait."""
    longest = ran_at = 0.0
    count = 0
    done = False

    async def other() -> None:
        nonlocal longest, ran_at
        while not done:
            longest = max(longest, time.now - ran_at)
            ran_at = time.now
            await checkpoint()

    async with create_task_group() as group:
        group.start_soon(other)
        await checkpoint()
        async for _ in file:
            time.now += works[count % len(works)]
            count += 1
        done = True
    return count, longest


@pytest.mark.parametrize(("mode", "arguments"), MODES)
@pytest.mark.parametrize("work", [1e-7, 5e-3, *(pytest.param(seconds, marks=pytest.mark.slow) for seconds in (3e-6, 2e-5, 3e-4))])
async def test_other_tasks_run_each_millisecond(tmp_path: Path, time: Time, mode: str, arguments: dict[str, Any], work: float) -> None:
    path = tmp_path / "file"
    path.write_text("a line\n" * 30_000, encoding=arguments.get("encoding", "ascii"))
    async with open_aio(path, mode, **arguments) as file:
        count, longest = await longest_wait(file, time, [work])
    assert count == 30_000
    # trio may run the loop's task twice before it runs the other.
    assert longest <= 2 * (max(LIMIT, work) + work)


async def test_body_that_becomes_slow_is_noticed_within_64_lines(tmp_path: Path, time: Time) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a line\n" * 4000)
    async with open_aio(path) as file:
        _, longest = await longest_wait(file, time, [1e-7] * 1000 + [1e-4] * 1000)
    assert longest <= 64 * 1e-4 + 2 * LIMIT


async def test_loop_that_was_cancelled_in_memory_continues_at_the_same_line(tmp_path: Path, time: Time) -> None:
    path = tmp_path / "file"
    lines = [b"%d\n" % i for i in range(2000)]
    path.write_bytes(b"".join(lines))
    got = []
    async with open_aio(path) as file:
        with CancelScope() as scope:
            async for line in file:
                got.append(line)
                time.now += 3e-4
                if len(got) == 500:
                    scope.cancel()
        assert scope.cancelled_caught
        assert len(got) < 510
        assert await file.tell() == sum(map(len, got))
        async for line in file:
            got.append(line)
    assert got == lines
