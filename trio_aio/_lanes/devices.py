"""What each device was found to do, so that the next request takes the right lane.

Whether RWF_NOWAIT works, and whether a direct request is really asynchronous, depends on the filesystem, its mount options and the
kernel. No table of names stays right, so we observe, per device and direction. A request was *slow* if the kernel would have slept
(EAGAIN) or had finished it when io_submit returned. After 4 slow ones in a row the next 64 go to the workers; then one tries again.
"""

from __future__ import annotations

__all__ = ("Backoff", "DeviceRecord", "DeviceRecords")

SLOW_LIMIT = 4  # in a row: a single one may be an accident (a busy lock, a timestamp that was due)
BACKOFF = 64  # requests that go elsewhere before one tries again


class Backoff:
    """A lane that the next `length` requests leave after `limit` slow ones in a row. Then one tries it again, and decides."""

    __slots__ = ("left", "length", "limit", "slow")

    def __init__(self, limit: int, length: int) -> None:
        self.limit: int = limit
        self.length: int = length
        self.slow: int = 0  # in a row
        self.left: int = 0  # requests that go elsewhere before one tries again

    def should_try(self) -> bool:
        """Return whether the next request should take this lane. Counts that request."""
        if self.left:
            self.left -= 1
            return False
        return True

    def note_slow(self) -> None:
        """Note that a request was slow here."""
        self.slow += 1
        if self.slow >= self.limit:
            self.slow = self.limit - 1  # the one that tries again decides
            self.left = self.length

    def note_fast(self) -> None:
        """Note that a request was not slow here."""
        self.slow = 0


class DeviceRecord(Backoff):
    """The kernel lane (direct files) or the inline lane (buffered reads) of one device in one direction."""

    __slots__ = ("nowait",)

    def __init__(self) -> None:
        super().__init__(SLOW_LIMIT, BACKOFF)
        self.nowait: bool = True  # the filesystem knows RWF_NOWAIT

    def note_slow(self) -> None:
        """Note that a request was not asynchronous here."""
        self.limit = SLOW_LIMIT if self.nowait else 1  # without RWF_NOWAIT each slow request is time that the event loop lost
        super().note_slow()


class DeviceRecords:
    """All records, by device, kind of file and direction."""

    def __init__(self) -> None:
        self._records: dict[tuple[int, bool, bool], DeviceRecord] = {}

    def find(self, device: int, *, direct: bool, writing: bool) -> DeviceRecord:
        """Return the record of `device`: the same object each time."""
        key = (device, direct, writing)
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = DeviceRecord()
        return record
