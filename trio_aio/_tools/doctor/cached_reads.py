"""Cached reads: how the event loop's thread sees that bytes are in the page cache, or whether workers read them too.

RWF_NOWAIT is the best way. Without it there is cachestat(2) (tmpfs) and mincore(2) of a mapping (overlayfs), unless the device's attributes
live with a server, or the kernel does not tell this user. So a page is read until the context's statistics say that no worker was needed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from trio_aio import AIOContext, open_aio

if TYPE_CHECKING:
    from trio_aio._tools.doctor.place import Place
    from trio_aio._tools.doctor.report import Report

__all__ = ("examine_cached_reads",)

# The first reads go to workers, and the page may be dropped from the cache. On busy processors an inline read may sleep, and then its
# lane leaves the device for 1024 reads.
TRIES = 3000
PATIENCE = 2.0  # seconds
FEWEST = 8  # tries, however long they take: a busy disk may need two seconds for the first


def examine_cached_reads(report: Report, place: Place) -> None:
    """Find out how cached reads of the place are served."""
    trio.run(_read, report, place)


async def _read(report: Report, place: Place) -> None:
    async with AIOContext(engine="workers") as context, await open_aio(place.path, context=context) as file:
        end = time.monotonic() + PATIENCE
        for tried in range(1, TRIES + 1):
            await file.pread(1, place.start)
            found = context.statistics()
            if found.submitted_inline or (tried >= FEWEST and time.monotonic() >= end):
                break
    if not found.submitted_inline:
        report.cached_reads = "workers"
    elif found.inline_by_cachestat:
        report.cached_reads = "cachestat"
    elif found.inline_by_mincore:
        report.cached_reads = "mincore"
    else:
        report.cached_reads = "RWF_NOWAIT"
