"""The faults of a test: which requests each is for, and what it does to a request that meets it.

Each kind of fault is a class. `Fault` counts the requests that match, and decides which of them meet the fault. `_meet` then tells the hook
(`_faults.FaultHook`) what happens to the request: fail, be cut, be late, or hang.

The kernel's rules hold for faults too. A failed close(2) has closed the descriptor. A direct file stops only between blocks. A write that
moves no bytes is an error. The methods of `FaultyContext` make these objects, and return them to the test.
"""

from __future__ import annotations

import errno
import math
import operator
import os
import threading
from typing import TYPE_CHECKING, Any, Literal, get_args

from trio_aio._errors import NotCopied
from trio_aio._lanes.workers import WorkerLane
from trio_aio._requests.contents import CopyMetadata, CopyName, ManyNames
from trio_aio._requests.names import Call, NameRequest
from trio_aio._requests.pieces import PiecesRequest

if TYPE_CHECKING:
    from types import TracebackType
    from typing import SupportsIndex

    from typing_extensions import Self

    from trio_aio._lanes.slots import Lane
    from trio_aio.testing._faults import FaultHook

    File = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int

__all__ = ("Delay", "Failure", "Fault", "Hang", "OperationName", "Shortness")

OperationName = Literal["open", "close", "read", "write", "sync", "stat", "truncate", "seek", "fallocate", "poll", "list", "change"]


class Fault(NotCopied):
    """A fault of a `FaultyContext`. It is active until it was met as often as asked, or is removed. A ``with`` removes it at its end."""

    def __init__(self, hook: FaultHook, file: File | None, operation: OperationName | None, turn: int | None, times: int | None) -> None:
        if operation is not None and operation not in get_args(OperationName):
            raise ValueError(f"operation must be one of {', '.join(get_args(OperationName))}, not {operation!r}")
        first = 1 if turn is None else _at_least(1, turn, "turn")
        count = math.inf if turn is None else 1
        if times is not None:
            count = _at_least(1, times, "times")
        self._faults: dict[Any, None] = hook.rules
        self._fd: int | None = file if isinstance(file, int) else None
        self._path: str | None = None if file is None else _absolute(file)
        self._paths: set[str] = set() if self._path is None else _ways_to(self._path)
        self._operation: OperationName | None = operation
        self._first: int = first
        self._last: float = first + count - 1
        self._seen: int = 0
        self._hits: int = 0
        self._faults[self] = None

    @property
    def hits(self) -> int:
        """How many requests have met it. Syncs that several calls share count for each call."""
        return self._hits

    def remove(self) -> None:
        """Let no more requests meet it. A second call has no effect."""
        self._faults.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.remove()

    def _suits(self, name: OperationName, request: Any) -> bool:
        """Return whether this fault can happen to a request."""
        return True

    def _first_due(self, request: Any) -> int | None:
        """Count a request, or each of its pieces, if the fault is for it. Return the index of the first that meets it, or None."""
        name = request.fault_name
        if name is None or (name != self._operation if self._operation is not None else name == "close") or not self._suits(name, request):
            return None
        descriptor = request.descriptor
        if self._fd is not None and descriptor.fd != self._fd:
            return None
        if self._path is not None and self._path != _absolute(descriptor.name) and self._paths.isdisjoint(_places_of(request)):
            return None
        before, self._seen = self._seen, self._seen + request.count
        if self._seen >= self._last:
            self.remove()
        first = max(self._first, before + 1)
        return first - before - 1 if first <= min(self._seen, self._last) else None

    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None:
        """Let the fault happen to a request that has just got its slot."""
        raise NotImplementedError


class Failure(Fault):
    """Requests fail with an errno, reads and writes after a number of bytes."""

    def __init__(self, error: int, after: int, hook: FaultHook, *rule: Any) -> None:
        self._error: int = _checked_error(error)
        self._after: int = _at_least(0, after, "after")
        super().__init__(hook, *rule)

    def _suits(self, name: OperationName, request: Any) -> bool:
        return not self._after or name in ("read", "write")

    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None:
        if request.closes:
            # After a failed close(2) the descriptor is closed all the same.
            hook.start_and_answer(lane, request, slot, -self._error)
        elif self._after and not request.transferred and request.nbytes and not isinstance(request, PiecesRequest):
            hook.start_cut(lane, request, slot, self._after, self, then=self)
        elif self._error == errno.EINTR and isinstance(lane, WorkerLane):
            # A worker repeats a system call after EINTR, so the request succeeds.
            lane.start_in_slot(request, slot)
        elif isinstance(request, PiecesRequest):
            hook.start_broken_pieces(lane, request, slot, self._after, -self._error)
        else:
            hook.answer(lane, request, -self._error)


class Shortness(Fault):
    """The first system call of a read or write moves only some bytes."""

    def __init__(self, nbytes: int, end: bool, hook: FaultHook, *rule: Any) -> None:
        self._nbytes: int = _at_least(0 if end else 1, nbytes, "nbytes")
        self._end: bool = end
        super().__init__(hook, *rule)

    def _suits(self, name: OperationName, request: Any) -> bool:
        # What reads or writes a file by its path makes several system calls, and continues after a short one.
        return name in ("read", "write") and (request.nbytes > 0 or not self._nbytes)

    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None:
        if isinstance(request, PiecesRequest):
            # A worker reads or writes the rest of a short piece with its next system call, so only the end of the file makes a difference.
            if self._end:
                hook.start_broken_pieces(lane, request, slot, self._nbytes, 0)
            else:
                lane.start_in_slot(request, slot)
        elif self._nbytes and not request.transferred:
            hook.start_cut(lane, request, slot, self._nbytes, self, then=self if self._end else None)
        else:
            # A write that moves no bytes is an error (transfer.c, `taio_transfer`).
            hook.answer(lane, request, 0 if request.fault_name == "read" else -errno.EIO)


class Delay(Fault):
    """Requests start late, in real time."""

    def __init__(self, seconds: float, hook: FaultHook, *rule: Any) -> None:
        if not 0 <= seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"seconds must be from 0 to {threading.TIMEOUT_MAX:.0f}, not {seconds}")
        self._seconds: float = seconds
        super().__init__(hook, *rule)

    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None:
        hook.hold(lane, request, slot)
        hook.alarm.set(self._seconds, request)


class Hang(Fault):
    """A fault whose requests hang until `release`. A ``with`` releases them at its end."""

    def __init__(self, hook: FaultHook, *rule: Any) -> None:
        self._hook: FaultHook | None = None
        self._requests: list[Any] = []
        self._released: bool = False
        self._error: int = 0
        super().__init__(hook, *rule)

    @property
    def held(self) -> int:
        """How many requests hang now."""
        return 0 if self._hook is None else sum(map(self._hook.holds, self._requests))

    def release(self, error: int | None = None) -> None:
        """Let the requests that hang continue, and let no more of them hang. Call it from any thread. A second call has no effect.

        error: an errno, 1 to 4095, with which the requests that hang fail instead.
        """
        if self._released:
            return
        self._error = 0 if error in (None, errno.EINTR) else _checked_error(error)
        self._released = True
        self.remove()
        requests, self._requests = self._requests, []
        if self._hook is not None:
            self._hook.release(requests, -self._error)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()

    def _meet(self, hook: FaultHook, lane: Lane[Any], request: Any, slot: int) -> None:
        hook.hold(lane, request, slot)
        self._hook = hook
        self._requests.append(request)
        # `release` was called while the request waited for its slot.
        if self._released:
            self._requests.remove(request)
            hook.release([request], -self._error)


def _absolute(name: object) -> str | None:
    """Return a path as an absolute str; None for a descriptor."""
    return None if name is None or isinstance(name, int) else os.path.abspath(os.fsdecode(name))  # type: ignore[arg-type]


# Calls on two names. Other calls have something else beside the first: what a link will point to, say.
_TWO_NAMES = (Call.RENAME, Call.RENAMES, Call.LINK, CopyName.call, CopyMetadata.call)


def _places_of(request: Any) -> set[str]:
    """Return the absolute paths of the names that a request is for, wherever they start from."""
    if not isinstance(request, NameRequest):
        return set()
    record = request.record
    if isinstance(request, ManyNames):
        folder = _place(record.dir, request.path)
        places = [os.path.normpath(os.path.join(folder, os.fsdecode(name))) for name in request.names]
    else:
        places = [_place(record.dir, request.path)] if request.path is not None or record.dir >= 0 else []
        if request.call in _TWO_NAMES:
            places.append(_place(record.dir2, request.path2))
    return {way for place in places for way in _ways_to(place)}


def _place(fd: int, path: bytes | None) -> str:
    """Return the absolute path of a name that starts from a descriptor, or that is the descriptor's own (None)."""
    text = os.fsdecode(path or b"")
    start = "/"
    if not text.startswith("/"):
        try:
            start = os.readlink(f"/proc/self/fd/{fd}") if fd >= 0 else os.getcwd()
        except OSError:  # it is closed, or gone
            start = f"<fd {fd}>"
    return os.path.normpath(os.path.join(start, text))


def _ways_to(path: str) -> set[str]:
    """Return a path, and the one without links that leads to the same name."""
    folder, name = os.path.split(path)
    return {path, os.path.join(os.path.realpath(folder), name)}


def _at_least(least: int, value: SupportsIndex, name: str) -> int:
    """Return `value` as an int. ValueError if it is less than `least`."""
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _checked_error(error: SupportsIndex) -> int:
    """Return `error` as an int. ValueError if it is no errno."""
    number = operator.index(error)
    # The kernel returns no other numbers as errors.
    if not 0 < number < 4096:
        raise ValueError(f"error must be an errno, from 1 to 4095, not {number}")
    return number
