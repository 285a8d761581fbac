"""Make each call on each device, and print how late the loop was: ``python -m tests.lateness`` as root.

Each call is made in three states, in a run of its own. *New*: the context has seen nothing, and the kernel has as little as possible in
memory. *Later*: the context has used the device, but not this file. *Known*: it has used this file too, and has it in memory.

A line of the table has the worst of the three, in ms. "took": the call. "late": how late the idle task of the loop was. "own": the same
without the time in which the thread was ready and waited for a processor. "beside": how late such a task of another process was then.
"slept": how long the loop's thread slept at a time; "times": how often, outside of the wait for events. "ran": how long it ran in one turn.

A sleep of more than 20 ms is a fault, however busy the machine is: status 1. On a machine that is not busy, "own" has to be below that too.
The first lines of each device are plain calls of `os` on the loop's thread. If none of these sleeps, the device shows nothing: a fault too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

import trio_aio
from trio_aio import current_context, open_aio

from ..conftest import _keep_mounts_to_ourselves
from .call import BLOCK, FAR, Call, Place, all_of, make_tree
from .calls import CALLS, missing, unknown
from .devices import DEVICES, Device
from .measure import TICK, Lateness, Turns, run, ticking_elsewhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STATES = ("new", "later", "known")
NUMBERS = ("took", "late", "own", "beside", "slept", "sleeps", "ran")
LIMIT = 20.0  # ms of "slept"
TOO_LONG = 60  # seconds for one call


class Result(NamedTuple):
    """How late the loop was beside one call in one state, in ms."""

    call: str
    device: str
    state: str
    took: float
    late: float
    own: float
    beside: float
    slept: float
    sleeps: int
    ran: float
    error: str


class Measurement:
    """What is measured on one device."""

    def __init__(self, name: str, device: Device, elsewhere: Lateness, loop: str) -> None:
        self._name: str = name
        self._device: Device = device
        self._loop: str = loop
        self._turns: Turns = Turns()
        self._here: Lateness = Lateness()
        self._elsewhere: Lateness = elsewhere
        self._numbers = itertools.count()

    def measure(self, call: Call, state: str) -> Result:
        """Make one call in a run of its own, and return how late the loop was."""
        name = f"{next(self._numbers)}"
        make_tree(self._device.made_in / name)
        self._device.make_cold()
        result = run(self._loop, partial(self._main, call, state, self._device.folder / name), self._turns)
        shutil.rmtree(self._device.made_in / name)
        return result

    async def _main(self, call: Call, state: str, folder: Path) -> Result:
        place = Place(folder, current_context())
        try:
            if state != "new":
                await _use(place, "warm")
            if call.opens is not None:
                name, mode, options = call.opens
                place.file = await place.keep(open_aio(place / name, mode, **options))
            if state == "known":
                await _use_all(place)
            if call.before is not None:
                await call.before(place)
            return await self._beside(call, state, place)
        finally:
            await place.end()

    async def _beside(self, call: Call, state: str, place: Place) -> Result:
        """Make a call while the device keeps it waiting, and an idle task ticks."""
        error = ""
        async with anyio.create_task_group() as group:
            group.start_soon(self._here.tick)
            await anyio.sleep(3 * TICK)
            self._device.start()
            await anyio.sleep(TICK)
            self._here.clear()
            self._elsewhere.clear()
            self._turns.clear()
            start = time.monotonic()
            try:
                with anyio.fail_after(TOO_LONG):
                    await call.make(place)
            except OSError as failure:
                error = failure.strerror or str(failure)
            took = (time.monotonic() - start) * 1000
            await anyio.sleep(3 * TICK)
            turns, late = self._turns, (self._here.worst, self._here.own, self._elsewhere.worst)
            result = Result(call.name, self._name, state, took, *late, turns.slept, turns.sleeps, turns.ran, error)
            self._device.stop()
            group.cancel_scope.cancel()
        return result


def on_the_loop(function: Callable[[Place], object]) -> Callable[[Place], Awaitable[object]]:
    """Return a coroutine function that calls this on the event loop's thread."""

    async def call(place: Place) -> object:
        return function(place)

    return call


def _read_now(place: Place) -> None:
    with contextlib.suppress(BlockingIOError):
        os.preadv(place.file.fileno(), [bytearray(BLOCK)], FAR, os.RWF_NOWAIT)


async def _use(place: Place, name: str) -> None:
    """Read a file directly and not, and ask for its name, often enough that the context knows the device."""
    for direct in (False, True):
        async with open_aio(place / name, direct=direct) as file:
            for at in range(8):
                await file.pread(BLOCK, at * BLOCK)
    for _ in range(3):
        await trio_aio.os.stat(place / name)
        await trio_aio.read_bytes(place / name)


async def _use_all(place: Place) -> None:
    """Let the kernel have in memory what the calls use, and the context know it."""
    for _ in range(2):
        for name in ("file", "whole", "text", "small", "other"):
            await trio_aio.os.stat(place / name)
            await trio_aio.read_bytes(place / name)
        await all_of(trio_aio.walk(place.folder))
        await trio_aio.os.stat(place / "link")
        await trio_aio.os.path.exists(place / "absent")
        if place.file is not None and place.file.readable():
            await place.file.read(100)
            await place.file.seek(0)


# What must be noticed: calls on the loop's thread.
PLAIN = [
    Call("plain os.pread", "", on_the_loop(lambda p: os.pread(p.file.fileno(), BLOCK, FAR)), ("file", "r+b", {})),
    Call("plain os.preadv", "RWF_NOWAIT", on_the_loop(_read_now), ("file", "r+b", {})),
    Call("plain os.pwrite", "", on_the_loop(lambda p: os.pwrite(p.file.fileno(), bytes(BLOCK), FAR)), ("file", "r+b", {})),
    Call("plain os.lseek", "SEEK_END", on_the_loop(lambda p: os.lseek(p.file.fileno(), 0, os.SEEK_END)), ("file", "r+b", {})),
    Call("plain os.stat", "", on_the_loop(lambda p: os.stat(p / "small"))),
]


def is_fault(result: Result) -> bool:
    return result.slept > LIMIT


def _worst(results: list[Result]) -> list[Result]:
    """Return, of each call on each device, the state in which the thread slept longest; then that in which the loop was latest."""
    worst: dict[tuple[str, str], Result] = {}
    for result in results:
        key = result.call, result.device
        if key not in worst or (result.slept, result.own) > (worst[key].slept, worst[key].own):
            worst[key] = result
    return list(worst.values())


HEAD = f"{'took':>8}{'late':>8}{'own':>8}{'beside':>8}{'slept':>8}{'times':>6}{'ran':>8}  "


def _numbers(result: Result) -> str:
    times = f"{result.took:8.0f}{result.late:8.1f}{result.own:8.1f}{result.beside:8.1f}{result.slept:8.2f}"
    return f"{times}{result.sleeps:6}{result.ran:8.1f}"


def _line(result: Result) -> str:
    end = f" ({result.error})" if result.error else ""
    return f"{_numbers(result)}  {result.device}: {result.call}, {result.state}{end}"


def _report(plain: list[Result], results: list[Result]) -> int:
    """Print the worst of each device, and all faults. Return the exit status."""
    print("\nthe worst of each device\n" + HEAD + "device: number of calls, in how many the thread slept at all")
    for device in dict.fromkeys(result.device for result in results):
        of_device = [result for result in results if result.device == device]
        worst = of_device[0]
        for result in of_device:
            worst = worst._replace(**{name: max(getattr(worst, name), getattr(result, name)) for name in NUMBERS})
        print(f"{_numbers(worst)}  {device}: {len(of_device)} calls, {sum(result.sleeps > 0 for result in of_device)}")
    faults = [result for result in results if is_fault(result)]
    print(f"\n{len(faults)} calls beside which the thread slept for more than {LIMIT:.0f} ms")
    for result in faults:
        print(_line(result))
    useless = {result.device for result in plain} - {result.device for result in plain if is_fault(result)} - {"tmpfs"}
    for device in sorted(useless):
        print(f"{device}: no plain call on the loop's thread slept, so this device shows nothing")
    return 1 if faults or useless else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lateness", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", action="append", help=f"a part of its name; default: all of {', '.join(DEVICES)}")
    parser.add_argument("--call", action="append", help="a part of its name (default: all)")
    parser.add_argument("--state", action="append", choices=STATES, help="default: all")
    parser.add_argument("--loop", choices=("trio", "asyncio"), default="trio")
    options = parser.parse_args()
    for lacks in (missing(), unknown()):
        if lacks:
            parser.error(f"the calls are not those of the package: {sorted(lacks)}")
    if os.geteuid() != 0:
        parser.error("this has to be root: it mounts and freezes filesystems")
    calls = [call for call in CALLS if not options.call or any(part in call.name for part in options.call)]
    devices = [name for name in DEVICES if not options.device or any(part in name for part in options.device)]
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background ignores the one, and both should unmount everything
        signal.signal(number, signal.default_int_handler)
    _keep_mounts_to_ourselves()
    plain: list[Result] = []
    results: list[Result] = []
    with ticking_elsewhere() as elsewhere, tempfile.TemporaryDirectory(prefix="lateness-") as base:
        # Images in memory: no sync waits for the disk of this machine.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", base], check=True)
        try:
            print(HEAD + "device: call, state")
            for name in devices:
                with DEVICES[name](Path(base)) as device:
                    measurement = Measurement(name, device, elsewhere, options.loop)
                    for call in [*PLAIN, *calls]:
                        states = [measurement.measure(call, state) for state in options.state or STATES]
                        (plain if call in PLAIN else results).extend(states)
                        print(_line(_worst(states)[0]), flush=True)
        finally:
            subprocess.run(["umount", base], check=True)
    return _report(plain, results)


if __name__ == "__main__":
    sys.exit(main())
