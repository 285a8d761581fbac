"""The program that measures how late an event loop is: it has every call, each call works, and it notices a thread that sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..conftest import need
from ..lateness.calls import CALLS, missing, unknown
from ..lateness.measure import Turns, run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def test_every_public_call_is_measured_or_has_a_reason() -> None:
    assert not missing()
    assert not unknown()


@pytest.fixture
def slow_pipe() -> Iterator[int]:
    """Yield a pipe that is written to as soon as the thread of the test sleeps."""
    reader, writer = os.pipe()
    stat = f"/proc/self/task/{threading.get_native_id()}/stat"
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            state = Path(stat).read_text(encoding="ascii").rpartition(")")[2].split()[0]
            if state == "S":
                os.write(writer, b"x")

    thread = threading.Thread(target=write)
    thread.start()
    yield reader
    ended.set()
    thread.join()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_sleep_of_the_loops_thread_is_counted(slow_pipe: int, loop: str) -> None:
    turns = Turns()

    async def sleep() -> tuple[int, bytes]:
        return turns.sleeps, os.read(slow_pipe, 1)

    before, _ = run(loop, sleep, turns)
    assert turns.sleeps > before
    assert turns.slept > 0


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_every_call_works_where_nothing_waits(loop: str) -> None:
    need(os.geteuid() == 0, "root, to mount filesystems")
    command = [sys.executable, "-m", "tests.lateness", "--device", "tmpfs", "--state", "new", "--loop", loop]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if "tmpfs: " in line and line.endswith("new") and "plain" not in line]) + 1 == len(CALLS)
    assert [line for line in lines if line.endswith("(No such file or directory)")]  # that of "no such directory"
