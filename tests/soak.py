"""The model test for as long as asked: ``python -m tests.soak --seconds 3600``, or ``make soak SECONDS=3600``.

Goes through ext4, tmpfs, xfs, btrfs and overlayfs (mounting the last four needs root), a plan of another seed on each in turn. Stops at
the first difference, exception, hang, crash or leak with status 1, what it was, and the one command that repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from .conftest import _descriptors, _kernel_contexts, _Mounts, _threads
from .support import model

if TYPE_CHECKING:
    from trio_aio import AIOContext

FILESYSTEMS = ("ext4", "tmpfs", "xfs", "btrfs", "overlay")
HANGS = 60  # seconds without a step


class Watchdog(threading.Thread):
    """Ends the process, with all that is known of where it stands, when no step has been made for too long."""

    def __init__(self) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._step: threading.Event = threading.Event()
        self._context: AIOContext | None = None
        self._root: Any = None
        self._failure: BaseException | None = None

    def progress(self, context: AIOContext | None = None, failure: BaseException | None = None) -> None:
        """Note that something was done; in a run, what to look at if it was the last. `failure`: why the run is about to end."""
        self._context = context
        self._failure = failure
        self._root = trio.lowlevel.current_root_task() if context is not None else None
        self._step.set()

    def run(self) -> None:
        while self._step.wait(HANGS):
            self._step.clear()
        print(f"\nnothing has happened for {HANGS} s", file=sys.stderr)
        if self._failure is not None:
            traceback.print_exception(self._failure)
        if self._context is not None:
            self._show_context(self._context)
        if self._root is not None:
            self._show_task(self._root, 0)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)

    def _show_context(self, context: AIOContext) -> None:
        print(context.statistics(), file=sys.stderr)
        engine: Any = context._core.engine
        print(f"outstanding: {engine.outstanding}, abandoned: {engine.abandoned}", file=sys.stderr)
        for lane in (engine.workers, engine.kernel):
            if lane is not None:
                print(f"{type(lane).__name__}: {[*lane.requests()]}, waiting: {[*lane.waiting()]}", file=sys.stderr)

    def _show_task(self, task: Any, depth: int) -> None:
        print("  " * depth + task.name, file=sys.stderr)
        for frame, line in task.iter_await_frames():
            print("  " * depth + f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_name}", file=sys.stderr)
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                self._show_task(child, depth + 1)


def _surroundings() -> tuple[Any, ...]:
    gc.collect()
    return _threads(), _descriptors(), max(_kernel_contexts(), 1)


def _soak(folders: dict[str, Path], first: int, seconds: float, repeat: int, seed: Any, place: Any) -> None:
    """Run plans until the time is over; in a process of its own, which tells by `seed` and `place` what it is at."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()
    watchdog = Watchdog()
    watchdog.start()
    start = shown = time.monotonic()
    totals = {kind: Counter[str]() for kind in folders}
    calls: Counter[str] = Counter()
    number = 0
    while (time.monotonic() - start < seconds) if not repeat else (number < repeat):
        place.value = number % len(folders)
        kind = list(folders)[place.value]
        seed.value = first if repeat else first + number
        before = _surroundings() if number % 50 == 0 else None
        tally = model.run(model.plan_of_seed(seed.value), folders[kind], watchdog.progress)
        watchdog.progress()
        if before is not None and before != (after := _surroundings()) and number:
            raise model.Difference(f"threads, descriptors and kernel contexts were {before} and are {after}")
        number += 1
        calls.update(tally.kinds)
        for name in ("steps", "calls", "cancelled", "finished_though_cancelled"):
            totals[kind][name] += getattr(tally, name)
        totals[kind]["plans"] += 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{shown - start:6.0f} s: {number} plans, {sum(calls.values())} calls, now at seed {seed.value}", flush=True)
    print(f"{time.monotonic() - start:.0f} s, seeds {first} to {seed.value}, no difference\n")
    columns = ("plans", "steps", "calls", "cancelled", "finished_though_cancelled")
    print(f"{'':10}" + "".join(f"{name.replace('_', ' '):>27}" for name in columns))
    for kind, total in totals.items():
        print(f"{kind:10}" + "".join(f"{total[name]:27}" for name in columns))
    print("calls: " + ", ".join(f"{name} {count}" for name, count in calls.most_common()), flush=True)


def _child(*arguments: Any) -> None:
    try:
        _soak(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a thread may hang


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for how long (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the first plan (default: another each time)")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="run the plan of the seed N times, and no other")
    parser.add_argument("--filesystem", action="append", choices=FILESYSTEMS, help="may be given more than once (default: all)")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background ignores the one, and both should unmount
        signal.signal(number, signal.default_int_handler)
    first = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    spawn = multiprocessing.get_context("spawn")
    seed, place = spawn.Value("Q", first), spawn.Value("i", 0)
    root = Path(tempfile.mkdtemp(prefix="soak-", dir="/var/tmp"))  # on a disk: /tmp may be a tmpfs
    mounts = _Mounts(root)
    folders = {}
    try:
        for kind in options.filesystem or FILESYSTEMS:
            try:
                folders[kind] = mounts.path(kind)
            except pytest.skip.Exception as missing:
                print(f"without {kind}: {missing}")
        print(f"from seed {first} on, on {', '.join(folders)}", flush=True)
        process = spawn.Process(target=_child, args=(folders, first, options.seconds, options.repeat, seed, place))
        process.start()
        try:
            process.join()
        except KeyboardInterrupt:
            process.kill()
            process.join()
            return 130
        if process.exitcode:
            how = f"by signal {-process.exitcode}" if process.exitcode < 0 else "as above"
            kind = list(folders)[place.value]
            print(f"\nended {how} on {kind}; again: {sys.executable} -m tests.soak --seed {seed.value} --filesystem {kind} --repeat 1000")
            return 1
        return 0
    finally:
        mounts.unmount()
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
