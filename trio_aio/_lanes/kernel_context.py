"""Kernel contexts: made when needed, kept for the next run, destroyed in a thread.

How the kernel works. ``io_setup`` takes a fraction of a millisecond. ``io_destroy`` takes 32 ms or more even when nothing is in flight,
because it waits for two RCU grace periods.

What we do about it. When a run ends, the kernel lane releases its drained context here. The process keeps one as a spare, and the next run
acquires it. If there is a spare already, the smaller of the two is destroyed in a thread, for which no task waits.
"""

from __future__ import annotations

import itertools
import os

from trio_aio._errors import setup_error
from trio_aio._lanes.threads import Background
from trio_aio._native import ffi, lib

__all__ = ("KernelContext", "acquire", "release")

_numbers = itertools.count(1)


class KernelContext:
    """The id that ``io_setup`` returned, and the number of events that the context has room for."""

    __slots__ = ("id", "nr_events")

    def __init__(self, id: int, nr_events: int) -> None:
        self.id: int = id
        self.nr_events: int = nr_events


# At most one, but for moments in which runs end in several threads. They share it, and need no lock: each step is one call of the list's.
_spares: list[KernelContext] = []


def acquire(nr_events: int) -> KernelContext:
    """Return a drained context with room for `nr_events` requests. OSError, with advice, if io_setup(2) fails."""
    spare = _take_spare()
    if spare is not None:
        if spare.nr_events >= nr_events:
            return spare
        _destroy_elsewhere(spare)
    made = ffi.new("uint64_t *")
    error = lib.taio_io_setup(nr_events, made)
    if error < 0:
        raise setup_error(error)
    return KernelContext(made[0], nr_events)


def release(context: KernelContext) -> None:
    """Keep a context as the spare, or destroy it. Nothing may be in flight in it, and all its events must have been taken."""
    while (other := _take_spare()) is not None:
        if other.nr_events > context.nr_events:
            context, other = other, context
        _destroy_elsewhere(other)
    _spares.append(context)


def _take_spare() -> KernelContext | None:
    try:
        return _spares.pop()
    except IndexError:
        return None


def _destroy_elsewhere(context: KernelContext) -> None:
    try:
        Background(f"trio_aio destroy {next(_numbers)}", lib.taio_io_destroy, context.id).start()
    except RuntimeError:  # no more threads: a delay of 32 ms is better than a leaked context
        lib.taio_io_destroy(context.id)


# The spare is the parent's. In the child its id is not valid, and its ring must not be touched.
os.register_at_fork(after_in_child=_spares.clear)
