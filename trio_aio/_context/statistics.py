"""`AIOStatistics`: what a context has done and is doing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("AIOStatistics",)


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
    """Never ran, or stopped by ``io_cancel``, or abandoned."""
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
