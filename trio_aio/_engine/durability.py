"""What of one file was written and is not durable yet, and what a failed sync has lost of it.

How the kernel works. It reports a failed write-back once for each open file, and then calls the pages clean: they are never written again.
So the next fsync(2) of that open file returns 0, although bytes that were written before are not on the disk. Every call that reports such
an error takes it away from all others: fsync, fdatasync, and a write with O_DSYNC or RWF_DSYNC. Descriptors that share an open file (dup,
or one that was passed to two objects) share the error too.

What we do about it. Each write that has ended is noted here as a range. A sync that succeeds forgets those that it has found. One that
fails makes all of them lost, and with them the writes that are in flight. While anything is lost, every sync of the file fails with the
same errno. Writing a lost range again, or cutting it off, heals it. A descriptor that was opened after the failure is not concerned. One
that the caller passes may be an old one, so it is. Only one sync of a file is in flight: of two that overlap, the one that was not told of
the error could otherwise end first.

Calls by fd connect a descriptor for each call, so what is not durable outlives the descriptors: `KnownFiles.connect`.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Writable(Protocol):
        """A descriptor of the file."""

        order: Any


__all__ = ("Durability", "means_lost", "merged", "without")

# Ranges that are noted one by one. Of more, neighbours are joined: then more counts as lost than was.
MOST_RANGES = 1024

# Errors that say that the call could not be made. All others may have taken the report of a failed write-back.
_NOT_MADE = frozenset(
    -number
    for number in (
        *(errno.EBADF, errno.EINVAL, errno.EFAULT, errno.EFBIG, errno.EOPNOTSUPP, errno.ESPIPE, errno.EAGAIN, errno.EINTR),
        *(errno.ECANCELED, errno.ENOMEM, errno.EPERM, errno.EACCES, errno.ETXTBSY),
    )
)

Range = tuple[int, int]


def means_lost(result: int) -> bool:
    """Return whether a sync, or a synchronous write, with this result may have lost what was written before."""
    return -4096 < result < 0 and result not in _NOT_MADE


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return the ranges in order; those that overlap or touch are joined."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def without(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """Return what is left of the ranges without the bytes from `start` to `end`."""
    left: list[Range] = []
    for first, last in ranges:
        if first < start:
            left.append((first, min(last, start)))
        if last > end:
            left.append((max(first, end), last))
    return [(first, last) for first, last in left if first < last]


class Durability:
    """Of one file: what a sync would make durable, what was lost, and which sync is in flight."""

    __slots__ = (
        *("_descriptors", "_doubtful", "_kept", "_key", "_lost", "_mark", "_sweep_at", "_syncing", "_waiting", "_written"),
        *("error", "failures", "written_elsewhere"),
    )

    def __init__(self, key: object, kept: dict[Any, Durability]) -> None:
        self.error: int = 0  # errno of the last failed sync, while something is lost
        self.failures: int = 0  # syncs that have failed
        self.written_elsewhere: bool = False  # by threads, which note no ranges: a sync that fails then loses the whole file
        self._key: object = key
        self._kept: dict[Any, Durability] = kept  # where it is kept while it has something to say
        self._written: list[Range] = []  # and not made durable
        self._mark: int = 0  # so many of them were there when the sync in flight started
        self._lost: list[Range] = []
        self._doubtful: WeakSet[Any] | None = None  # writes that were in flight when a sync failed
        self._descriptors: list[ref[Writable]] = []  # that may be written to
        self._sweep_at: int = 8  # so many descriptors, and those that are gone are removed
        self._syncing: Any = None  # in flight
        self._waiting: deque[Any] = deque()  # syncs that wait for it

    def connect(self, descriptor: Writable) -> None:
        """Note a descriptor of the file that may be written to."""
        self._descriptors.append(ref(descriptor))
        if len(self._descriptors) > self._sweep_at:
            self._descriptors = [known for known in self._descriptors if known() is not None]
            self._sweep_at = 2 * len(self._descriptors) + 8

    # ---- writes

    def note_written(self, start: int, end: int, request: object = None, *, durable: bool = False, exact: bool = True) -> None:
        """Note that a write has ended, and whether it is durable already. exact: it has written just these bytes, so it heals them.

        Called once for each piece of a write.
        """
        if end <= start:
            return
        if self.error:
            self._heal(start, end, request, exact=exact)
        if durable:
            return
        written = self._written
        if len(written) > self._mark and written[-1][1] == start:
            written[-1] = (written[-1][0], end)
            return
        written.append((start, end))
        if len(written) == 1:
            self._kept[self._key] = self
        elif len(written) - self._mark > MOST_RANGES:
            self._join()

    def _join(self) -> None:
        ranges = merged(self._written[self._mark :])
        if len(ranges) > MOST_RANGES // 2:
            ranges = [(first[0], second[1]) for first, second in zip(ranges[::2], [*ranges[1::2], ranges[-1]], strict=False)]
        self._written[self._mark :] = ranges

    def _heal(self, start: int, end: int, request: object, *, exact: bool) -> None:
        if self._doubtful is not None and request in self._doubtful:
            self._lost = merged([*self._lost, (start, end)])
        elif exact:
            self._lost = without(self._lost, start, end)
        self._end_if_healed(request)

    def note_truncated(self, size: int) -> None:
        """Note that the file was cut off: what lay behind `size` is not missed, nor will be."""
        # As many ranges as before: `_mark` counts them. Some are empty now.
        self._written = [(min(start, size), min(end, size)) for start, end in self._written]
        if self.error:
            self._lost = [(start, min(end, size)) for start, end in self._lost if start < size]
            self._end_if_healed(None)

    def _end_if_healed(self, ended: object) -> None:
        doubtful = self._doubtful
        if not self._lost and (doubtful is None or not any(write.outstanding and write is not ended for write in doubtful)):
            self.error, self._doubtful = 0, None
            self._forget_if_idle()

    def _forget_if_idle(self) -> None:
        if not self._written and not self.error:
            self._kept.pop(self._key, None)

    # ---- syncs

    def enter(self, sync: object) -> bool:
        """Return whether a sync may start now. Otherwise it waits for another one, and `leave` of that returns it."""
        if self._syncing is None:
            self._syncing = sync
        if self._syncing is not sync:
            self._waiting.append(sync)
            return False
        self._mark = len(self._written)
        return True

    def holds(self, sync: object) -> bool:
        """Return whether a sync waits here."""
        return sync in self._waiting

    def withdraw(self, sync: object) -> bool:
        """Forget a sync that waits here. False: it does not."""
        if sync not in self._waiting:
            return False
        self._waiting.remove(sync)
        return True

    def leave(self, sync: object, ready: list[Any]) -> None:
        """Note that a sync has ended, and add the next one to `ready`. Nothing if that was noted before."""
        if self._syncing is not sync:
            return
        self._mark = 0
        if self._waiting:
            self._syncing, _, _ = self._waiting[0], ready.append(self._waiting[0]), self._waiting.popleft()  # as in `Order`
        else:
            self._syncing = None

    def note_synced(self, known_failures: int) -> int:
        """Note that the sync in flight has succeeded. Return the result that it has for its caller: 0, or what an earlier one met.

        known_failures: what `failures` was when its descriptor was opened.
        """
        del self._written[: self._mark]
        self._mark = 0
        self._forget_if_idle()
        return -self.error if known_failures < self.failures else 0

    def note_failed(self, error: int, size: int) -> None:
        """Note that a sync, or a synchronous write, has failed: what it would have made durable is lost. size: of the file, bytes."""
        writes = [write for known in self._descriptors if (descriptor := known()) is not None for write in descriptor.order.writes]
        self.error, self.failures = error, self.failures + 1
        if writes:
            self._doubtful = WeakSet([*(self._doubtful or ()), *writes])
        self._lost = merged([*self._lost, *((start, end) for start, end in self._written if start < end)])
        if self.written_elsewhere or (not self._lost and not writes):
            self._lost = [(0, max(size, 1))]  # others have written what the kernel could not write back
        self._written.clear()
        self._mark = 0
        self._kept[self._key] = self
