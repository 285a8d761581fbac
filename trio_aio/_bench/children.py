"""Contenders in processes of their own.

One process for each contender of a row, and in it one run of the event loop for each round. A process, because contenders disturb one
another in one: worker threads and polling threads that stay, an allocator and a collector with another's garbage, limits of thread
pools, contexts that are never given back; and a process has a peak of memory and a CPU time that are a contender's alone. Not one for each
round, because then each round would begin with imports and cold pools. The contenders take turns, and who is not at work sleeps in a
read of a pipe.

The processes are forked from a server that has imported what they need and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_aio._bench import contenders
from trio_aio._bench.measure import Load, Measured, Unavailable, Work
from trio_aio._bench.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

__all__ = ("Child", "Failed", "prepare", "started")

PATIENCE = 120.0  # seconds, beside the time that a round should take


@dataclass(frozen=True)
class Failed:
    """Why there is no measure."""

    reason: str
    unavailable: bool = False
    """It cannot be had here; else something went wrong."""
    detail: str = ""


def prepare() -> None:
    """Have the server of processes started, with everything imported."""
    # Names that are not there are passed over.
    modules = ["trio", "asyncio", "anyio._backends._trio", "anyio._backends._asyncio", "trio_aio._backends._trio", __name__]
    multiprocessing.set_forkserver_preload(modules)


class Child:
    """One contender's process."""

    def __init__(self, row: str, contender: str) -> None:
        context = multiprocessing.get_context("forkserver")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, row, contender), daemon=True)
        self._process.start()
        other.close()

    def kill(self) -> None:
        """End it in the middle of its work."""
        self._process.kill()

    def end(self) -> None:
        """Tell it to end."""
        self._pipe.close()

    def join(self) -> None:
        """Wait until it has ended."""
        self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()
        self._process.close()

    def measure(self, load: Load) -> Measured | Failed:
        """Have one round measured."""
        try:
            self._pipe.send(load)
            patience = PATIENCE + 10 * load.seconds
            if not self._pipe.poll(patience):
                self._process.kill()
                return Failed(f"no answer for {patience:.0f} seconds")
            answer: Measured | Failed = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._process.join(5)
            return Failed(f"its process ended with status {self._process.exitcode}")
        return answer


@contextmanager
def started(row: str, contenders: Sequence[str]) -> Iterator[list[Child]]:
    """Have a process for each contender, until the end of the block."""
    children: list[Child] = []
    try:
        for contender in contenders:
            children.append(Child(row, contender))
        yield children
    except BaseException:
        for child in children:
            child.kill()
        raise
    finally:
        for child in children:  # all at once: leaving a kernel context takes tens of milliseconds
            child.end()
        for child in children:
            child.join()


def _serve(pipe: Connection, row: str, contender: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one by closing the pipe
    (found,) = (each for each in ROWS if each.name == row)
    (chosen,) = (each for each in found.contenders if each.name == contender)
    while True:
        try:
            load: Load = pipe.recv()
        except EOFError:
            return
        answer: Measured | Failed
        try:
            answer = contenders.measure(chosen, Work(load))
        except Unavailable as error:
            answer = Failed(str(error), unavailable=True)
        except Exception as error:
            answer = Failed(f"{type(error).__name__}: {error}", detail=traceback.format_exc())
        pipe.send(answer)
