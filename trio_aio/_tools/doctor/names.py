"""Names: whether a path that the kernel has in memory is answered on the event loop's thread.

That needs openat2(2) with RESOLVE_CACHED, which came with Linux 5.12 and which a sandbox may forbid, and a mount whose attributes do not
live on a server. So a path is asked for several times: the first answer comes from a worker, which looks at the mount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

import trio_aio
from trio_aio import AIOContext

if TYPE_CHECKING:
    from trio_aio._tools.doctor.report import Report

__all__ = ("examine_names",)

# The kernel sometimes does not answer from memory although it could.
TRIES = 20


def examine_names(report: Report) -> None:
    """Find out which lane answers for the names of the path."""
    report.names = "inline" if trio.run(_inline_answers, report.path) else "workers"


async def _inline_answers(path: str) -> int:
    async with AIOContext(engine="workers") as context:
        for _ in range(TRIES):
            await trio_aio.os.stat(path, context=context)
        return context.statistics().names_inline
