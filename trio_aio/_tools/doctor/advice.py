"""What to do about the findings of a report: one line for each thing that is wrong.

Each line names the finding, what it means for the user's program, and what to change. Nothing is said about what works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._tools.doctor.report import Report, Tried

__all__ = ("advice",)

# The events for which the context of each run asks `io_setup`.
DEPTH = 128


def advice(report: Report) -> Iterator[str]:
    """Return one line of advice after another."""
    if report.engine != "aio":
        yield f"Native AIO is not used: {report.engine_because}. Workers (threads) serve all requests instead."
    elif report.aio_nr is not None and report.aio_max_nr is not None and report.aio_nr + DEPTH > 0.9 * report.aio_max_nr:
        yield (
            f"fs.aio-nr is near its limit, and each process needs {DEPTH}: "
            f"run `sysctl fs.aio-max-nr={max(1 << 20, 2 * report.aio_max_nr)}` on the host."
        )
    if report.completions == "io_getevents":
        yield "The ring of completions is not mapped as on Linux: each look at it is a system call."
    if report.not_tried_because is not None:
        yield f"Not everything was tried: {report.not_tried_because}. Name a writable folder on the same filesystem."
    if report.direct == "refused":
        yield "O_DIRECT is refused here: open files without direct=True, or keep them on another filesystem (ext4, xfs)."
    elif report.direct == "ignored":
        yield "O_DIRECT is accepted and ignored here: direct=True changes nothing, and reads and writes use the page cache."
    else:
        yield from _advice_on_direct(report.requests)
        yield from _advice_on_waits(report)
    if report.nowait.get("buffered read") is False and report.cached_reads == "workers":
        yield (
            "RWF_NOWAIT does not work for buffered reads here, and nothing else says what is cached, so workers serve even cached ones: "
            "keep files that are read often on a local volume (ext4, xfs, btrfs, tmpfs), and let the reader own them."
        )


def _advice_on_direct(requests: dict[str, Tried]) -> Iterator[str]:
    def never(name: str) -> bool:
        return name in requests and requests[name].error is None and not requests[name].asynchronous

    if never("direct read"):
        yield "Direct reads are not asynchronous here: workers serve them, and they are no faster than buffered ones."
    if never("direct overwrite"):
        yield "Direct writes are not asynchronous here: workers serve them, so no more run at once than there are workers."
    elif never("direct append"):
        if never("direct write into a fallocated range"):
            yield "Direct appends are not asynchronous here: write the file to its full length once, and overwrite it later."
        else:
            yield "Direct appends are not asynchronous here: call `fallocate` ahead, and `pwrite` into that range."


def _advice_on_waits(report: Report) -> Iterator[str]:
    for direction in ("read", "write"):
        one, many = (report.waits.get(f"direct {direction}, {name}") for name in ("one", "many at once"))
        if one is not None and one.always:
            yield f"io_submit of a direct {direction} waits here: a thread of trio_aio calls it, and other devices are not held up."
        elif many is not None and many.always:
            yield (
                f"io_submit waits here when many direct {direction}s are in flight at once: a thread of trio_aio calls it. "
                "On FUSE, raise max_background of the filesystem; of a disk, nr_requests of its queue."
            )
