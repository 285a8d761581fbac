#!/bin/sh
# anyio's lru_cache counts calls that failed or were cancelled, and never forgets them: then it keeps one result, whatever its maxsize is.
#
# Guess: `anyio.functools.lru_cache(maxsize=100)` keeps the last 100 results, as `functools.lru_cache` does. A call that raises keeps nothing, so
#   it changes nothing but the number of misses.
# Seen: anyio 4.16.0, trio and asyncio alike. After 100 calls of one argument that all raised, `cache_info().currsize` is 100 although nothing is
#   cached, and from then on each new result displaces the one before: of three results in turn none is found again. The same after 100 calls that
#   were cancelled, which is what a timeout does. `functools.lru_cache` finds all three. `cache_clear` mends it.
# Why it matters: a service that is down for a minute turns the cache off for as long as the process lives. Every result stays right, and only
#   the load on what was to be spared tells.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check anyio==4.16.0 trio==0.35.0

cat > "$folder/program.py" <<'PYTHON'
import functools
import sys
from importlib.metadata import version

import anyio
from anyio.functools import lru_cache

SIZE, FAILURES = 100, 100


async def found_again(lookup, ran):
    """Look three names up, and again. Return how often the second time found what the first had left."""
    for name in "abc":
        await lookup(name)
    ran.clear()
    for name in "abc":
        await lookup(name)
    return 3 - len(ran)


async def of_anyio(kind):
    ran = []

    @lru_cache(maxsize=SIZE)
    async def lookup(name):
        ran.append(name)
        if name == "down" and kind == "raised":
            raise ConnectionError
        if name == "down":
            scope.cancel()  # as a deadline does while the function waits
            await anyio.sleep_forever()
        return name

    for _ in range(FAILURES if kind != "none" else 0):
        try:
            with anyio.CancelScope() as scope:
                await lookup("down")
        except ConnectionError:
            pass
    size = lookup.cache_info().currsize
    return size, await found_again(lookup, ran)


def of_functools():
    ran = []

    @functools.lru_cache(maxsize=SIZE)
    def lookup(name):
        ran.append(name)
        if name == "down":
            raise ConnectionError
        return name

    for _ in range(FAILURES):
        try:
            lookup("down")
        except ConnectionError:
            pass
    size = lookup.cache_info().currsize
    for _ in range(2):
        before = len(ran)
        for name in "abc":
            lookup(name)
    return size, 3 - (len(ran) - before)


expected = {"none": (0, 3), "raised": (100, 0), "cancelled": (100, 0)}
changed = of_functools() != (0, 3)
print("anyio", version("anyio"), "trio", version("trio"))
print(f"functools:       {FAILURES} calls raised:    currsize, found again of 3:", *of_functools())
for backend in ("trio", "asyncio"):
    for kind, wanted in expected.items():
        got = anyio.run(of_anyio, kind, backend=backend)
        print(f"anyio, {backend:8}  {FAILURES if kind != 'none' else 0:3} calls {kind:9}: currsize, found again of 3:", *got)
        changed = changed or got != wanted
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py"
