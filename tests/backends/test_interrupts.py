"""Exceptions of signal handlers: between any two lines of the package, and at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio
from trio.lowlevel import checkpoint

from trio_aio._backends import _trio, interrupts
from trio_aio._backends.interrupts import CLOSED, WAITING, deliver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def gate() -> Iterator[Any]:
    def fail(number: int, frame: object) -> NoReturn:
        raise TimeoutError(number)

    before = signal.signal(signal.SIGALRM, fail)
    try:
        yield interrupts.open_gate()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_signal_behind_a_closed_gate_waits_for_deliver(gate: Any) -> None:
    gate[CLOSED] = 1
    signal.raise_signal(signal.SIGALRM)
    signal.raise_signal(signal.SIGALRM)
    gate[CLOSED] = 0
    assert gate[WAITING]
    with pytest.raises(TimeoutError):
        deliver()
    assert not gate[WAITING]
    deliver()


def test_signal_at_an_open_gate_is_passed_on_at_once(gate: Any) -> None:
    with pytest.raises(TimeoutError):
        signal.raise_signal(signal.SIGALRM)


def test_registered_handler_stays_what_python_sees(gate: Any) -> None:
    registered = signal.getsignal(signal.SIGALRM)
    interrupts.guard()
    assert signal.getsignal(signal.SIGALRM) is registered


def test_new_handler_is_guarded_again(gate: Any) -> None:
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(gate[CLOSED]))
    interrupts.guard()
    gate[CLOSED] = 1
    signal.raise_signal(signal.SIGALRM)
    gate[CLOSED] = 0
    deliver()
    assert seen == [0]


def test_flush_that_raises_is_repeated_in_the_next_tick(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fail_once() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise MemoryError

    async def main() -> None:
        backend = _trio.current()
        backend.at_end_of_tick(fail_once)
        while len(calls) < 2:
            await checkpoint()
        backend.at_end_of_tick(fail_once)
        while len(calls) < 3:
            await checkpoint()

    trio.run(main)
    assert "end of a tick" in caplog.text


# Raises a signal before the n-th line of the package that a small program runs, for many n. Prints what each run ended with.
PROGRAM = """
import asyncio, gc, os, signal, sys, threading
import trio_aio
from trio_aio import open_aio

path, loop, direct, step = sys.argv[1], sys.argv[2], sys.argv[3] == "direct", int(sys.argv[4])
root, me = os.path.dirname(trio_aio.__file__), threading.get_ident()
left = -1

async def work():
    if loop == "eager":
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with open_aio(path, "r+b", direct=direct) as file:
        async def one(i):
            await file.pread(4096, 8192 * i)
            await file.pwrite(bytes(4096), 8192 * i)
            await file.fdatasync()
        await asyncio.gather(*(one(i) for i in range(4)))
        await file.read_blocks([0, 65536, 8192], 4096)
        async with file.chunks(65536, stop=1 << 18) as chunks:
            async for chunk in chunks:
                pass

def line(code, number):
    global left
    if not code.co_filename.startswith(root):
        return getattr(sys, "monitoring", None) and sys.monitoring.DISABLE
    if left > 0 and threading.get_ident() == me:
        left -= 1
        if left:
            return
        frame = sys._getframe()
        while frame and frame.f_code.co_name != "__del__":  # Python only prints what a finalizer raises
            frame = frame.f_back
        if frame:
            left = 1
        else:
            signal.raise_signal(signal.SIGALRM)

def trace(frame, event, arg):
    if frame.f_code.co_filename.startswith(root):
        if event == "line":
            line(frame.f_code, frame.f_lineno)
        return trace

def interrupt(*_):
    raise KeyboardInterrupt

def is_open():
    return any(os.path.realpath(f"/proc/self/fd/{fd}") == path for fd in os.listdir("/proc/self/fd"))

signal.signal(signal.SIGALRM, interrupt)
run = asyncio.run
if loop == "uvloop":
    import uvloop
    run = uvloop.run
run(work())
if hasattr(sys, "monitoring"):
    sys.monitoring.use_tool_id(3, "lines")
    sys.monitoring.register_callback(3, sys.monitoring.events.LINE, line)
    sys.monitoring.set_events(3, sys.monitoring.events.LINE)
n = 1
while True:
    if not hasattr(sys, "monitoring"):
        sys.settrace(trace)
    left = n
    try:
        run(work())
    except KeyboardInterrupt:
        pass
    if left > 0:
        break
    left = -1
    gc.collect()
    while is_open():
        pass
    n += step
sys.settrace(None)
print("ended", flush=True)
"""


@pytest.mark.parametrize("direct", ["buffered", "direct"])
@pytest.mark.parametrize(
    "loop",
    [
        "asyncio",
        pytest.param("eager", marks=[pytest.mark.slow, pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12")]),
        pytest.param("uvloop", marks=pytest.mark.slow),
    ],
)
def test_interrupt_before_any_line_ends_the_run(loop: str, direct: str, disk: Path) -> None:
    path = os.path.realpath(disk / "data")
    with open(path, "wb") as file:
        file.write(bytes(1 << 20))
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, loop, direct, "151"], capture_output=True, text=True, timeout=100)
    assert done.stdout == "ended\n", done.stderr
