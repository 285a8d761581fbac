"""Contenders in processes of their own.

Each contender of a row has one process, and in it one run of the event loop for each round. In a common process contenders would disturb
one another: by worker and polling threads that stay, by another's garbage in the allocator and the collector, by limits of thread
pools, by contexts that are never released. And a process has a peak of memory and a CPU time that are one contender's alone. A process
for each round would begin with imports and cold pools. Contenders alternate, and those that are not measured sleep in a read of a pipe.

Processes are forked from a server that has imported what they need and done nothing else. With `--beside`, contenders of ours are
programs instead, in this build and in the others, so that all of them start in the same way (builds.py).
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Protocol

from trio_aio._tools.bench import builds
from trio_aio._tools.bench.contenders.contender import measure
from trio_aio._tools.bench.measure import Measured, Unavailable, Work
from trio_aio._tools.bench.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from trio_aio._tools.bench.builds import Build
    from trio_aio._tools.bench.bystander import Bystander
    from trio_aio._tools.bench.measure import Load

__all__ = ("Child", "Failed", "Start", "prepare", "serve_on", "started")

# Seconds that an answer may take, besides ten times the length of a round.
PATIENCE = 120.0


@dataclass(frozen=True)
class Failed:
    """Why there are no figures."""

    reason: str
    unavailable: bool = False
    """It cannot be measured here; otherwise something went wrong."""
    detail: str = ""


@dataclass(frozen=True)
class Start:
    """Which contender of a row a process serves."""

    row: str
    contender: str
    build: Build | None = None
    """Start it as a program of this build; None: fork it from the server."""


def prepare() -> None:
    """Make the server of processes import everything when it starts."""
    multiprocessing.set_forkserver_preload(["trio", "asyncio", "anyio", "trio_aio", __name__, "trio_aio._tools.bench.bystander"])


class _Process(Protocol):
    """What a process of `multiprocessing` can do, and `_Program` too."""

    @property
    def exitcode(self) -> int | None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def close(self) -> None: ...


class _Program:
    """A process of a build."""

    def __init__(self, build: Build, end: Connection[Any, Any], row: str, contender: str) -> None:
        fd = end.fileno()
        # In a session of its own: Ctrl-C is for the parent, which ends this process by closing the pipe.
        self._popen: subprocess.Popen[bytes] = subprocess.Popen(
            builds.command(build, fd, row, contender), stdin=subprocess.DEVNULL, pass_fds=[fd], start_new_session=True
        )

    @property
    def exitcode(self) -> int | None:
        return self._popen.poll()

    def kill(self) -> None:
        self._popen.kill()

    def join(self, timeout: float | None = None) -> None:
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            # As `Process.join` does: the caller asks for the exit code.
            return

    def close(self) -> None:
        """Release nothing: `kill` and `join` have reaped the process."""


class Child:
    """The process of one contender."""

    def __init__(self, start: Start) -> None:
        self._pipe, end = Pipe()
        self._process: _Process
        if start.build is not None:
            self._process = _Program(start.build, end, start.row, start.contender)
        else:
            context = multiprocessing.get_context("forkserver")
            process = context.Process(target=_serve, args=(end, start.row, start.contender), daemon=True)
            process.start()
            self._process = process
        end.close()

    def kill(self) -> None:
        """Kill the process, also in the middle of a round."""
        self._process.kill()

    def end(self) -> None:
        """Ask the process to end. Does not wait."""
        self._pipe.close()

    def join(self) -> None:
        """Wait until the process has ended, and kill it if that takes too long."""
        self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()
        self._process.close()

    def measure(self, load: Load, bystander: Bystander) -> Measured | Failed:
        """Return the figures of one round. The bystander ticks while the process does."""
        beside: list[float] = []
        try:
            self._pipe.send(load)
            patience = PATIENCE + 10 * load.seconds
            while self._pipe.poll(patience):
                answer: Measured | Failed | bool = self._pipe.recv()
                if isinstance(answer, bool):
                    beside += bystander.tick(answer)
                    continue
                if isinstance(answer, Measured):
                    answer.beside = beside
                return answer
            self._process.kill()
            why_not = f"no answer for {patience:.0f} seconds"
        except (EOFError, ConnectionError):
            self._process.join(5)
            why_not = f"its process ended with status {self._process.exitcode}"
        bystander.tick(False)
        return Failed(why_not)


@contextmanager
def started(starts: Sequence[Start]) -> Iterator[list[Child]]:
    """Provide a process for each contender, until the end of the block."""
    children: list[Child] = []
    try:
        for start in starts:
            children.append(Child(start))
        yield children
    except BaseException:
        for child in children:
            child.kill()
        raise
    finally:
        # All of them end at once: leaving a kernel context takes tens of milliseconds.
        for child in children:
            child.end()
        for child in children:
            child.join()


def serve_on(fd: int, row: str, contender: str) -> None:
    """Serve a contender on a connection that the parent made."""
    _serve(Connection(fd), row, contender)


def _serve(pipe: Connection[Any, Any], row: str, contender: str) -> None:
    # Ctrl-C is for the parent, which ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (found,) = (each for each in ROWS if each.name == row)
    (chosen,) = (each for each in found.contenders if each.name == contender)
    while True:
        try:
            load: Load = pipe.recv()
        except EOFError:
            return
        answer: Measured | Failed
        try:
            answer = measure(chosen, Work(load, pipe.send))
        except Unavailable as error:
            answer = Failed(str(error), unavailable=True)
        except Exception as error:
            answer = Failed(f"{type(error).__name__}: {error}", detail=traceback.format_exc())
        pipe.send(answer)
