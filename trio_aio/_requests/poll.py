"""Readiness of a descriptor: ``IOCB_CMD_POLL``."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from trio_aio._engine.withdrawal import withdraw_prepared
from trio_aio._native import lib
from trio_aio._requests.base import Request

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor
    from trio_aio._engine.host import Host
    from trio_aio._lanes.kernel import KernelLane

__all__ = ("Poll",)


class Poll(Request):
    """Wait until one of `events` is ready. The one request that io_cancel stops; it may never complete by itself."""

    __slots__ = ("events", "offload")

    kernel_can_cancel = True
    fault_name = "poll"

    def __init__(self, descriptor: Descriptor, events: int) -> None:
        Request.__init__(self, descriptor)
        self.events: int = events
        self.offload: bool = False

    def can_submit(self, engine: Host) -> bool:
        """Return True. A file with a name may be on a filesystem whose server is asked, inside io_submit: a submitter calls that."""
        mode = self.descriptor.mode
        self.offload = not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_IFMT(mode) == 0)  # 0: an eventfd, an epoll, a timer
        return True

    def prepare(self, lane: KernelLane, slot: int) -> None:
        descriptor = self.descriptor
        if self.offload:  # one submitter for each device: a server that hangs holds up no polls elsewhere, and no reads
            lane.gather(self, slot, ("poll", descriptor.device), lib.IOCB_CMD_POLL, descriptor.fd, self.events, 0, 0, 0)
        else:
            lane.start(self, slot, lib.IOCB_CMD_POLL, descriptor.fd, self.events, 0, 0, 0)

    def complete_kernel(self, engine: Host, token: int, result: int) -> None:
        if self.cancel_accepted and result == 0 and not self.cancel_requested:
            result = -errno.ECANCELED  # the closing of the context asked for it, not its task
        engine.finish(self, result)

    def leave_kernel(self, engine: Host, result: int) -> None:
        """Fail: no worker can wait for it."""
        withdraw_prepared(engine, self)
        engine.finish(self, result)
        engine.wake_loop()
