"""What each device was found to do, so that the next request takes the right lane.

Whether RWF_NOWAIT works, and whether a direct request is really asynchronous, depends on the filesystem, its mount options and the
kernel. No table of names stays right, so we observe, per device and direction. A request was *slow* if the kernel would have slept
(EAGAIN) or had finished it when io_submit returned. After 4 slow ones in a row the next 64 go to the workers; then one tries again.

io_submit itself may sleep too. A write always may (a frozen filesystem), so a submitter calls it (`submitter`). A read may where a server
answers for the filesystem, and where RWF_NOWAIT is not known. The submitter finds that out with the first read of the device. Elsewhere
the event loop calls io_submit, watched by ring.c. When a call is seen to sleep, the submitter gets the next 1024 reads, and twice as many
after each further time.

A virus scanner, and others that listen by fanotify(7), may have every read of a file wait for their answer, RWF_NOWAIT or not. The worker
that opens a file tries that with a read of nothing (`watched`).
"""

from __future__ import annotations

from typing import Any

__all__ = ("Backoff", "DeviceRecord", "DeviceRecords")

SLOW_LIMIT = 4  # in a row: a single one may be an accident (a busy lock, a timestamp that was due)
BACKOFF = 64  # requests that go elsewhere before one tries again
SLEEP_BACKOFF, MOST_SLEEP_BACKOFF = 1024, 1 << 20  # reads that a submitter gets after io_submit has slept on the event loop's thread


class Backoff:
    """A lane that the next `length` requests leave after `limit` slow ones in a row. Then one tries it again, and decides."""

    __slots__ = ("length", "limit", "skips_left", "slow")

    def __init__(self, limit: int, length: int) -> None:
        self.limit: int = limit
        self.length: int = length
        self.slow: int = 0  # in a row
        self.skips_left: int = 0  # requests that go elsewhere before one tries again

    def should_try(self) -> bool:
        """Return whether the next request should take this lane. Counts that request."""
        if self.skips_left:
            self.skips_left -= 1
            return False
        return True

    def note_slow(self) -> None:
        """Note that a request was slow here."""
        self.slow += 1
        if self.slow >= self.limit:
            self.slow = self.limit - 1  # the one that tries again decides
            self.skips_left = self.length

    def note_fast(self) -> None:
        """Note that a request was not slow here."""
        self.slow = 0


class DeviceRecord(Backoff):
    """The kernel lane (direct files) or the inline lane (buffered reads) of one device in one direction."""

    __slots__ = ("_offloaded", "_one_tries", "_span", "local", "may_ask", "nowait", "offload", "residency")

    def __init__(self) -> None:
        super().__init__(SLOW_LIMIT, BACKOFF)
        self.nowait: bool = True  # the filesystem knows RWF_NOWAIT
        self.may_ask: bool = True  # without RWF_NOWAIT, a worker may find out how else to see that pages are cached (`residency`)
        self.residency: Any = None  # that of all files, if they need no mapping
        self.local: bool | None = None  # the kernel knows the attributes of files itself, and asks no server; None: not known
        self.offload: bool = True  # io_submit of direct reads may sleep: a submitter calls it
        self._one_tries: bool = False  # a submitter has found it slow, and reports what one request finds some ticks later
        self._offloaded: int = 0  # reads that a submitter still gets, because io_submit has slept
        self._span: int = SLEEP_BACKOFF  # how many it gets after the next time

    def note_no_nowait(self) -> None:
        """Note that the filesystem does not know RWF_NOWAIT."""
        self.nowait = False
        self.offload = True

    def note_place(self, *, local: bool) -> None:
        """Note whether the kernel knows the attributes of files itself."""
        self.local = local
        self._update()

    def note_slept(self) -> None:
        """Note that io_submit has slept on the event loop's thread: a submitter calls it for a while, each time for longer."""
        self._offloaded, self._span = self._span, min(2 * self._span, MOST_SLEEP_BACKOFF)
        self.offload = True

    def leave_inline(self) -> None:
        """Let the next buffered reads go to the workers: one on the event loop's thread has slept. Each time more of them."""
        self.skips_left, self._span = self._span, min(2 * self._span, MOST_SLEEP_BACKOFF)

    def note_slept_elsewhere(self) -> None:
        """Note that io_submit may have slept on a submitter's thread: the loop does not try again yet."""
        if self._offloaded:
            self._offloaded = max(self._offloaded, self._span // 2)

    def must_offload(self) -> bool:
        """Return whether a submitter must call io_submit for the next read. Counts that read."""
        if self._offloaded:
            self._offloaded -= 1
            if not self._offloaded:
                self._update()
        return self.offload

    def back_off(self) -> None:
        """Let the next requests go to the workers: io_submit performs them before it returns, one after the other."""
        self.skips_left: int = self.length
        self._one_tries = True

    def return_to(self) -> None:
        """Let requests come back: a submitter has called io_submit, which returned before they were complete."""
        self.note_fast()
        if self._one_tries:
            self._one_tries = False
            self.skips_left = 0

    def should_try(self) -> bool:
        """Return whether the next request should take this lane. Counts that request."""
        if self.skips_left == 1 and self._one_tries:
            self.skips_left = self.length  # the others do not try until it is known what this one finds
            return True
        return super().should_try()

    def _update(self) -> None:
        self.offload = not self.local or not self.nowait or self._offloaded > 0


class DeviceRecords:
    """All records, by device, kind of file and direction."""

    def __init__(self) -> None:
        self._records: dict[tuple[int, bool, bool, bool], DeviceRecord] = {}

    def find(self, device: int, *, direct: bool, writing: bool, watched: bool = False) -> DeviceRecord:
        """Return the record of `device`: the same object each time.

        watched: that of the files whose reads wait for a listener. None of these is started on the event loop's thread.
        """
        key = (device, direct, writing, watched)
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = DeviceRecord()
            if watched:
                record.nowait = record.may_ask = False
        return record
