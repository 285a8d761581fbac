"""The end of an engine whose event loop has ended first."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._engine.host import Host

__all__ = ("drain",)


def drain(engine: Host) -> None:
    """Wait, blocking, until nothing is outstanding, and close. For a thread that took the engine over from its event loop."""
    engine.plug = _no_plug
    engine.orphaned = True
    readable = select.poll()
    readable.register(engine.event_fd, select.POLLIN)
    engine.flush()
    while engine.outstanding or engine.drops:
        if engine.plugged:
            engine.flush()  # from here: `flush` inside `flush` would recurse once for each queued request
        else:
            readable.poll()
            engine.reap(drain=True)
    engine.stop()
    engine.close()


def _no_plug() -> None:
    """Do nothing: `drain` looks at `plugged` itself."""
