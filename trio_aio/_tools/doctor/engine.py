"""Which engine a run gets, why, and how completions are taken.

`io_setup` fails where a seccomp filter forbids it, where the kernel has no native AIO, and where the host's limit is reached. The
environment may also ask for workers only. A run with `engine="auto"` does not say which of these applies, so a second run insists
on native AIO, and its error is the reason.

The kernel maps the ring of completions into the process, at the address that is the context's id. Some systems that only imitate
Linux do not, and then each look at the completions is a system call.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import trio

from trio_aio import AIOContext, current_context
from trio_aio.lowlevel import io_destroy, io_setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._tools.doctor.report import Report

__all__ = ("AT_ONCE", "MANY", "examine_engine", "kernel_context")

# The most requests that a trial submits in one call.
AT_ONCE = 8
# The most small requests that a trial has in flight: more than a FUSE server takes by default (12).
MANY = 64

# struct aio_ring in the kernel's fs/aio.c: its magic number, and where this and the incompatible features lie in it, in bytes.
_RING_MAGIC = 0xA10A10A1
_MAGIC_AT, _INCOMPATIBLE_AT = 16, 24


def examine_engine(report: Report) -> None:
    """Find out which engine a run gets, and why."""
    try:
        report.engine = trio.run(_engine_of_a_run)
    except (ValueError, OSError) as error:
        report.engine_because = str(error)
        return
    if report.engine == "aio":
        report.engine_because = "io_setup works"
        return
    try:
        trio.run(_insist_on_native_aio)
    except OSError as error:
        report.engine_because = error.strerror or str(error)
    else:
        report.engine_because = f"TRIO_AIO_ENGINE={os.environ.get('TRIO_AIO_ENGINE')} is set in the environment"


async def _engine_of_a_run() -> Literal["aio", "workers"]:
    return current_context().engine


async def _insist_on_native_aio() -> None:
    async with AIOContext(engine="aio"):
        pass


@contextmanager
def kernel_context(report: Report) -> Iterator[int | None]:
    """Provide a kernel context for trials, None if `io_setup` fails, and find out how its completions are taken."""
    try:
        context = io_setup(MANY)
    except OSError:
        # `examine_engine` has reported it.
        yield None
        return
    try:
        report.completions = "ring" if _has_ring(context) else "io_getevents"
        yield context
    finally:
        io_destroy(context)


def _has_ring(context: int) -> bool:
    # Through /proc/self/mem: where there is no ring the id may be no address, and a plain read of it would be a segmentation fault.
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            head = os.pread(memory.fileno(), 32, context)
    except OSError:
        return False
    magic, incompatible = (int.from_bytes(head[at : at + 4], sys.byteorder) for at in (_MAGIC_AT, _INCOMPATIBLE_AT))
    return (magic, incompatible) == (_RING_MAGIC, 0)
