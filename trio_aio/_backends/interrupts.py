"""Puts off the exceptions of signal handlers while a step of the engine runs on the main thread.

How CPython works. The function that a program has registered for a signal runs on the main thread, between any two bytecodes. It may
raise: KeyboardInterrupt, or the TimeoutError of an alarm. trio puts off its own KeyboardInterrupt in functions that ask for it. asyncio
puts off nothing.

What we do about it. A step that must not be torn (submit, flush, take completions, cancel, close) closes a gate, and C holds the signals
that arrive meanwhile (interrupts.c). A signal that came before has its function called at the next call of a Python function. So the first
thing behind a closed gate is the call of the step. Used like this, with nothing else between the lines::

    try:
        gate[CLOSED] = 1
        step()
    finally:
        gate[CLOSED] = 0
        if gate[WAITING]:
            deliver()

A program may register a function at any time, which replaces our handler: so `guard` is called again and again.
"""

from __future__ import annotations

import threading
from _signal import getsignal  # type: ignore[import-not-found]  # a tenth of the time of signal.getsignal
from signal import valid_signals
from typing import TYPE_CHECKING

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import MutableSequence

__all__ = ("CLOSED", "GUARD_AGAIN", "WAITING", "deliver", "deliver_late", "guard", "open_gate")

CLOSED, WAITING = 0, 1
GUARD_AGAIN = 0.02  # seconds after which a new handler is looked for; a look costs 5 us

deliver = lib.taio_interrupts_deliver
# In 5 ms: after a finalizer, which would drop the exception.
deliver_late = lib.taio_interrupts_deliver_late

_gate: MutableSequence[int] = memoryview(ffi.buffer(ffi.addressof(lib, "taio_interrupts"))).cast("i")  # type: ignore[assignment]
_numbers: list[int] = sorted(map(int, valid_signals()))


def open_gate() -> MutableSequence[int]:
    """Return this thread's gate: that of the main thread, or one that holds nothing, as no handler runs in other threads."""
    if threading.current_thread() is not threading.main_thread():
        return [0, 0]
    guard()
    return _gate


def guard() -> None:
    """Let the gate hold each signal that has a Python function now. On the main thread."""
    for number in _numbers:
        if callable(getsignal(number)):
            lib.taio_interrupts_guard(number)
