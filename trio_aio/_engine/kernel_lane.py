"""The kernel lane of an engine: made with the first request that can use it, and closed with the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._lanes.kernel import KernelLane

if TYPE_CHECKING:
    from trio_aio._engine.host import Host

__all__ = ("set_up_kernel", "tear_down_kernel")


def set_up_kernel(engine: Host) -> None:
    """Make the kernel lane. OSError as ``io_setup``."""
    engine.kernel = KernelLane.open(engine.max_in_flight, engine.event_fd, engine.refuse)
    if engine.hook is not None:
        engine.hook.install_kernel(engine)


def tear_down_kernel(engine: Host) -> None:
    """Close the kernel lane, if there is one."""
    if engine.kernel is not None:
        engine.earlier_submit_calls = engine.kernel.submit_calls
        engine.kernel.close()
        engine.kernel = None
