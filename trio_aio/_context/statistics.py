"""`AIOStatistics`: what a context has done and is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_aio._engine.engine import Engine
    from trio_aio._lanes.names import NameLane

__all__ = ("AIOStatistics", "counted")


@dataclass(frozen=True)
class AIOStatistics:
    """What a context has done and is doing: numbers of requests, unless a field says bytes or calls."""

    engine: str
    """"aio" or "workers"."""
    max_in_flight: int
    """The most requests in flight at once, in the kernel and with the workers each."""
    in_flight: int
    """In flight now."""
    queued: int
    """Waiting for a slot."""
    submitted_kernel: int
    """Sent to the kernel lane (``io_submit``)."""
    submitted_inline: int
    """Served by the inline lane, from the kernel's caches on the event loop's thread: bytes, and names."""
    submitted_workers: int
    """Sent to the workers, with those that the kernel lane could not serve (`retried`)."""
    submit_calls: int
    """System calls ``io_submit``: one serves several requests."""
    completed: int
    """Ended with a result or an error."""
    cancelled: int
    """Never ran, or stopped by ``io_cancel``."""
    abandoned: int
    """Left to run on, because their callers no longer wait: see ``abandon_on_cancel``. Counted once, when that happens; `in_flight` counts
    them too, until their end."""
    retried: int
    """The kernel lane would have slept (RWF_NOWAIT: EAGAIN, or not known there), so a worker did it."""
    bytes_read: int
    """By all lanes."""
    bytes_written: int
    """By all lanes."""
    bounced_bytes: int = 0
    """Copied through aligned memory, because memory or offset of direct I/O was not aligned. Not counted: `pread` and small overwrites of
    whole blocks, which are always copied."""
    inline_by_cachestat: int = 0
    """Reads of the inline lane without ``RWF_NOWAIT``, after cachestat(2) (tmpfs). They are among `submitted_inline` too."""
    inline_by_mincore: int = 0
    """The same after mincore(2) of a mapping (overlayfs)."""
    inline_missed: int = 0
    """Reads that the inline lane could not serve, so another lane did."""
    inline_slept: int = 0
    """Inline reads that were seen to sleep all the same. Each takes the lane from its device for the next 1024 reads or more."""
    names_inline: int = 0
    """Calls on names that were answered on the event loop's thread. They are among `submitted_inline` too."""
    names_missed: int = 0
    """Calls on names that the inline lane could not answer, so a worker did."""
    names_slept: int = 0
    """Inline calls on names that slept all the same. Each takes the lane from its mount, for 1 s at first and 10 minutes at most."""


def counted(engine: Engine, names: NameLane, kind: str, max_in_flight: int) -> AIOStatistics:
    """Return the counts of an engine and of the calls on names that were answered at once. kind: "aio" or "workers"."""
    inline = engine.inline
    return AIOStatistics(
        engine=kind,
        max_in_flight=max_in_flight,
        in_flight=engine.occupied,
        queued=engine.queued,
        submitted_kernel=engine.submitted_kernel,
        submitted_inline=inline.hits + names.hits,
        submitted_workers=engine.submitted_workers,
        submit_calls=engine.submit_calls,
        completed=engine.completed + inline.hits + names.hits,
        cancelled=engine.cancelled,
        abandoned=engine.ever_abandoned,
        retried=engine.retried,
        bytes_read=engine.bytes_read + inline.bytes_read + names.bytes_read,
        bytes_written=engine.bytes_written,
        bounced_bytes=engine.bounced_bytes,
        inline_by_cachestat=inline.hits_by_cachestat,
        inline_by_mincore=inline.hits_by_mincore,
        inline_missed=inline.misses,
        inline_slept=inline.slept,
        names_inline=names.hits,
        names_missed=names.misses,
        names_slept=names.slept,
    )
