"""For tests of programs that use trio_aio: `FaultyContext`, whose requests fail, are short, are late or hang, as the test asks.

A disk that is full, slow or broken is hard to have in a test, and a mock of a file does not behave as the kernel does. Here the real engine
serves real files. Only single requests are changed, at the point where they would go to the kernel or to a worker (`_faults`).

A rule says which requests it is for, and what happens to them (`_rules`). A thread lets delayed requests run when it is time (`_hold`).
Tests of programs use `FaultyContext`, and so do our own tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trio_aio._context.context import AIOContext
from trio_aio.testing._faults import FaultHook
from trio_aio.testing._rules import Delay, Failure, Fault, Hang, Shortness

if TYPE_CHECKING:
    from typing_extensions import Self

    from trio_aio.testing._rules import File, OperationName

__all__ = ("Fault", "FaultyContext", "Hang")


class FaultyContext(AIOContext):
    """An `AIOContext` for tests: its requests can fail, be short, be late or hang.

    ``async with FaultyContext() as context:``, then ``open_aio(path, context=context)``. It takes the arguments of `AIOContext`. Bytes in
    the page cache are read by requests too (there is no inline lane), so that every read can meet a fault.

    Each fault says which requests it is for:

    - `file`: those of one file, by its descriptor or by its path: the one that it was opened with, or any name of a call, also one that
      starts from a descriptor or an `AsyncDirectory`. Paths are made absolute. A request for several names (`remove_tree`) meets the
      fault as a whole; of those that `read_files` asks for, only the file itself fails. Default: all files.
    - `operation`: "open", "close", "read", "write" (an append too), "sync", "stat", "truncate", "seek", "fallocate", "poll", "list" or
      "change" (of names).
      Default: all but "close". The requests are those that the package makes: ``size()`` is a "stat", ``open_aio`` of a descriptor
      an "open" and a "seek".
    - `turn`: the number of the first of these requests that meets the fault, counted from now on, from 1. Default: 1.
    - `times`: how many in a row meet it, at least 1. Default: 1 if there is a `turn`, otherwise all until it is removed.

    Requests are counted when they are submitted, even if they must wait for a slot. If several faults are for one request, it meets the one
    that was made first. A sync that several calls share is counted for each of them, and what one of them meets, all do. ValueError for a
    wrong operation or a number out of range.
    """

    def __init__(
        self,
        max_in_flight: int = 128,
        *,
        max_workers: int | None = None,
        engine: Literal["auto", "aio", "workers"] = "auto",
    ) -> None:
        super().__init__(max_in_flight, max_workers=max_workers, engine=engine)
        self._faults: FaultHook = FaultHook()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def _hook(self) -> FaultHook:
        return self._faults

    def fail(
        self,
        error: int,
        *,
        after: int = 0,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Let requests fail with `error`, and return the `Fault`.

        error: an errno, 1 to 4095. A failed request has no effect; a "close" has closed the descriptor, as with close(2). After EINTR the
        request is made again, so no call raises it. after: bytes. A read or write of an open file fails when so many have been read or
        written.
        """
        return Failure(error, after, self._faults, file, operation, turn, times)

    def short(
        self,
        nbytes: int,
        *,
        end: bool = False,
        file: File | None = None,
        operation: Literal["read", "write"] | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Let the first system call of a read or write move only `nbytes`, and return the `Fault`.

        nbytes: bytes, at least 1, or 0 with `end`; in whole blocks, at least one, for direct files. The engine continues after them, so
        the call still moves all bytes. end: it does not continue. A read returns what it has, as if the file ended there, and a write fails
        with EIO.
        """
        if operation not in (None, "read", "write"):
            raise ValueError(f"operation must be 'read' or 'write', not {operation!r}: no other request can be short")
        return Shortness(nbytes, end, self._faults, file, operation, turn, times)

    def delay(
        self,
        seconds: float,
        *,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Fault:
        """Let requests start `seconds` late, and return the `Fault`. They hold their slot meanwhile.

        seconds: real time, also with a mocked clock; 0 to ``threading.TIMEOUT_MAX``. Of delayed requests, only a poll can be cancelled.
        """
        return Delay(seconds, self._faults, file, operation, turn, times)

    def hang(
        self,
        *,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Hang:
        """Let requests hang until `Hang.release`, or the end of its ``with``. Return the `Hang`.

        Like those of a hung disk, they cannot be cancelled. A cancelled call continues to wait (but not a read with
        ``abandon_on_cancel``, or a poll), and a context does not close. Put the ``with`` outside the nursery, or a failing test never ends.
        """
        return Hang(self._faults, file, operation, turn, times)
