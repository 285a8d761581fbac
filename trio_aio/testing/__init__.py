"""For tests of programs that use trio_aio: `FaultyContext`, whose requests fail, are short, are late or hang, as the test says."""

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
    """An `AIOContext` for tests: its requests can be told to fail, to be short, to be late or to hang.

    ``async with FaultyContext() as context:``, then ``open_aio(path, context=context)``. It takes the arguments of `AIOContext`. What the
    page cache has goes the long way too (no inline lane), so that every request can meet a fault.

    Each fault says which requests it is for:

    - `file`: those of a file, by its path (as `open_aio` was given it; "." and ".." aside) or by its descriptor. Default: all.
    - `operation`: "open", "close", "read", "write" (an append too), "sync", "stat", "truncate", "seek", "fallocate" or "poll".
      Default: all but "close". The requests are those that the package makes: ``size()`` is a "stat", ``open_aio`` of a descriptor
      an "open" and a "seek".
    - `turn`: the nth of them from now on, counted from 1. Default: from the first on.
    - `times`: for so many in a row. Default: 1 where there is a `turn`, else until it is removed.

    Requests count when they are made, also those that have to wait for their turn. Of several faults for one request it meets the one
    that was asked for first.
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
        """Let requests fail with `error` (an errno), without effect; reads and writes with `after` when so many bytes have been moved.

        A "close" that fails has closed the descriptor, as close(2) has. EINTR is nothing that a caller sees: the request is made again.
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
        """Let the kernel move only `nbytes` of a read or write at first (direct files: whole blocks, at least one).

        The engine goes on for the rest, so that the call still gives everything. With `end` there is no rest: a read gives what it
        has, as if the file ended there, and a write fails with EIO.
        """
        if operation not in (None, "read", "write"):
            raise ValueError(f"operation must be 'read' or 'write', not {operation!r}: nothing else can be short")
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
        """Let requests begin `seconds` late; they have their slot meanwhile. Real time, also under a mocked clock."""
        return Delay(seconds, self._faults, file, operation, turn, times)

    def hang(
        self,
        *,
        file: File | None = None,
        operation: OperationName | None = None,
        turn: int | None = None,
        times: int | None = None,
    ) -> Hang:
        """Let requests hang until ``release()`` of what this gives, or the end of its ``with``.

        They cannot be stopped, as those of a disk cannot: a cancelled call goes on waiting (with ``abandon_on_cancel`` a read gives up),
        and a context does not close before. So put the ``with`` around the nursery, that a failing test ends.
        """
        return Hang(self._faults, file, operation, turn, times)
