"""A submitter: a native thread that calls io_submit for one device, where that call may sleep.

How the kernel works. io_submit sleeps for a write on a frozen filesystem, for any request on a filesystem with a server (FUSE) that takes
its time, for a read of a file whose map of blocks is not in memory, and when the device's queue is full. Nothing can be said beforehand to
make it return instead: RWF_NOWAIT covers none of these.

What we do about it. The kernel lane fills the iocbs as usual, and hands those that may sleep to a thread (submitter.c), at once if the
lane was empty, otherwise at the end of the tick; small overwrites also as soon as there are eight. A request that the thread has not taken
can still be withdrawn. One device has one thread for each direction and one for polls, so a device that hangs holds up no other. The thread
needs no GIL and no Python object. It starts with the first hand-over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._lanes.devices import SLOW_LIMIT, DeviceRecord
from trio_aio._native import lib

if TYPE_CHECKING:
    from trio_aio._native import CData

__all__ = ("Submitter",)

_hand_over = lib.taio_submitter_hand_over
_LOCAL, _SERVER, _SLOW, _FAST, _LONG = lib.TAIO_LOCAL, lib.TAIO_SERVER, lib.TAIO_SLOW, lib.TAIO_FAST, lib.TAIO_LONG
_RUNS = lib.TAIO_RUNS


class Submitter:
    """The thread, the requests that wait for the end of the tick, and the device that it learns about."""

    __slots__ = ("device", "gathered", "native", "started", "unlisted")

    def __init__(self, ring: CData, key: object) -> None:
        self.device: DeviceRecord | None = key if isinstance(key, DeviceRecord) else None
        self.gathered: list[Any] = []  # requests that wait for `hand_over`
        self.started: bool = False  # the thread runs: nothing that is gathered can be refused any more, so it need not be listed
        self.unlisted: int = 0  # how many such requests wait for `hand_over`
        probing = self.device is not None and self.device.local is None
        self.native: CData = lib.taio_submitter_new(ring, probing)
        if not self.native:
            raise MemoryError

    def hand_over(self, left: dict[Any, None]) -> None:
        """Hand over what is gathered. Add the requests to `left` for which that was not possible, because no thread can be had."""
        if not self.learn():
            left.update(dict.fromkeys(self.gathered))
        self.gathered, self.unlisted = [], 0

    def learn(self) -> bool:
        """Hand over, and learn of the device. Return whether that was possible."""
        answer, device = _hand_over(self.native, SLOW_LIMIT), self.device
        if answer < 0:
            return False
        self.started = answer & _RUNS != 0
        if device is None:
            return True
        if answer & _SLOW:
            device.back_off()
        elif answer & _FAST:
            device.return_to()
        if answer & _LONG:
            device.note_slept_elsewhere()
        if device.local is None and answer & (_LOCAL | _SERVER):
            device.note_place(local=bool(answer & _LOCAL))
        return True

    def forget(self, request: object) -> None:
        """Note that a request was withdrawn."""
        if request in self.gathered:
            self.gathered.remove(request)

    def stop(self) -> None:
        """Let the thread end: it signals the eventfd as it leaves."""
        lib.taio_submitter_stop(self.native)

    @property
    def stopped(self) -> bool:
        """Whether `close` will not wait."""
        return bool(lib.taio_submitter_has_left(self.native))

    def close(self) -> None:
        """Wait for the thread to end, and free its memory. Call `stop` before."""
        lib.taio_submitter_free(self.native)
