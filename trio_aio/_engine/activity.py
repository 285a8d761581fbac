"""Whether something is in flight that ends by itself: then a mock clock must not jump (`_backends.mock_clock`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._engine.host import Host

__all__ = ("is_busy",)


def is_busy(engine: Host) -> bool:
    """Return whether the kernel or a worker has a request, or gets one in this tick.

    Not counted: polls, which wait for others; what a test's fault holds back; and what waits behind those alone.
    """
    if not engine.outstanding:
        return False
    if engine.ready or engine.syncs.due:  # or starts a sync at the end of this tick, or of the next one
        return True
    hook = engine.hook
    workers, kernel = engine.workers, engine.kernel
    if workers.occupied and any(hook is None or not hook.holds(request) for request in workers.requests()):
        return True
    if kernel is None or not kernel.occupied:
        return False
    return any(not request.kernel_can_cancel and (hook is None or not hook.holds(request)) for request in kernel.requests())
