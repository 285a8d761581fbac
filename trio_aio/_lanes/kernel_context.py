"""Kernel contexts: made when needed, kept for the next run, destroyed where nobody waits.

``io_setup`` takes a fraction of a millisecond, ``io_destroy`` 32 ms and more even when nothing is in flight (two RCU grace periods). So
a drained context becomes the process's one spare, and the next run takes it over; one too many is destroyed in a thread.
"""

from __future__ import annotations

import itertools
import os
import threading

from trio_aio._errors import setup_error
from trio_aio._native import ffi, lib

__all__ = ("KernelContext", "acquire", "release")

_numbers = itertools.count(1)


class KernelContext:
    """An id that ``io_setup`` gave, and the number of events it has room for."""

    __slots__ = ("id", "nr_events")

    def __init__(self, id: int, nr_events: int) -> None:
        self.id: int = id
        self.nr_events: int = nr_events


_lock = threading.Lock()  # runs in several threads share the spare
_spare: KernelContext | None = None


def acquire(nr_events: int) -> KernelContext:
    """Give a drained context with room for `nr_events`; OSError as ``io_setup``'s, with advice."""
    global _spare
    with _lock:
        spare, _spare = _spare, None
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
    """Take a context back. Nothing is in flight in it, and no event is left."""
    global _spare
    with _lock:
        if _spare is None:
            _spare = context
            return
        if _spare.nr_events < context.nr_events:
            _spare, context = context, _spare
    _destroy_elsewhere(context)


def _destroy_elsewhere(context: KernelContext) -> None:
    name = f"trio_aio destroy {next(_numbers)}"
    try:
        threading.Thread(target=lib.taio_io_destroy, args=(context.id,), name=name, daemon=True).start()
    except RuntimeError:  # no thread to be had: better late by 32 ms than lost for the host
        lib.taio_io_destroy(context.id)


def _forget_in_child() -> None:
    """The spare is the parent's; here its id means nothing, and its ring must not be touched."""
    global _lock, _spare
    _lock = threading.Lock()
    _spare = None


os.register_at_fork(after_in_child=_forget_in_child)
