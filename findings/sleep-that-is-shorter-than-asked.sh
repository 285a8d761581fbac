#!/bin/sh
# Under uvloop a sleep ends before its time, and one of half a millisecond or less does not sleep at all.
#
# Guess: `asyncio.sleep(delay)` waits at least `delay`, on every loop. uvloop's timers have a grain of a millisecond, so it rounds up: 0.4 ms is 1 ms.
# Seen: uvloop 0.23.0. It rounds to the nearest millisecond, and counts from the time that it cached at the start of the loop's tick. The shortest
#   of 300 sleeps of 0.1 to 0.5 ms took some microseconds, and so did the shortest of those of 1.4 ms. asyncio's own loop never
#   returned early. `loop.time()` did not move either: before and after a sleep of 0.4 ms it is the same.
# Why it matters: a poll with `await asyncio.sleep(0.0005)` between two looks is a busy loop under uvloop, and a limiter that spaces requests by 0.4 ms
#   lets all of them through at once. Code that subtracts two `loop.time()` and divides meets a zero.
#
# Needs Python >= 3.11 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0

cat > "$folder/program.py" <<'PYTHON'
import asyncio
import sys
import time

import uvloop

DELAYS = (0.0001, 0.0004, 0.0005, 0.0014)


async def shortest(delay):
    """Return the shortest of many sleeps, by the system's clock, and of the same by the loop's, in seconds."""
    loop = asyncio.get_running_loop()
    real, own = [], []
    for _ in range(300):
        before, before_own = time.perf_counter(), loop.time()
        await asyncio.sleep(delay)
        own.append(loop.time() - before_own)
        real.append(time.perf_counter() - before)
    return min(real), min(own)


async def all_of_them():
    return {delay: await shortest(delay) for delay in DELAYS}


changed = False
print("uvloop", uvloop.__version__)
for name, factory in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=factory) as runner:
        found = runner.run(all_of_them())
    for delay, (real, own) in found.items():
        print(f"{name:8} sleep of {delay * 1e3:.1f} ms: the shortest took {real * 1e3:.3f} ms, and by loop.time() {own * 1e3:.3f} ms")
        early = real < delay
        changed = changed or early != (name == "uvloop") or (name == "uvloop" and delay < 0.001 and own != 0)
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py"
