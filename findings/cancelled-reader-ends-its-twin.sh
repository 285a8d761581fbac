#!/bin/sh
# Of two iterators of anyio's tee, a timeout in one ends the other: it stops early, as if there were no more, without an error.
#
# Guess: the iterators of `anyio.itertools.tee(stream)` are independent, as those of `itertools.tee` are. One that is cancelled while it waits for
#   the next item fetches nothing; the other fetches that item itself, and gets the rest.
# Seen: anyio 4.16.0, trio and asyncio alike, with an async generator as the source. Two tasks read five items. The task that is fetching the third
#   is cancelled: the cancellation is raised inside the generator and finishes it. The other task then has two items, and its `async for` ends
#   normally. If the source is an object with an `__anext__` of its own, the other task gets all five.
# Why it matters: a slow reader with a timeout of its own (a log, a digest, a preview) cuts what the other one writes. Nothing is raised where the
#   items are missing, so a file of a part looks like a whole one.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check anyio==4.16.0 trio==0.35.0

cat > "$folder/program.py" <<'PYTHON'
import sys
from importlib.metadata import version

import anyio
from anyio.itertools import tee
from anyio.lowlevel import checkpoint

COUNT, AT = 5, 2


async def settle():
    for _ in range(20):
        await checkpoint()


async def generator(may_go_on):
    for item in range(COUNT):
        if item == AT:
            await may_go_on.wait()
        yield item


class Items:
    """The same items, from an object that a cancellation does not finish."""

    def __init__(self, may_go_on):
        self.next, self.may_go_on = 0, may_go_on

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.next == COUNT:
            raise StopAsyncIteration
        if self.next == AT:
            await self.may_go_on.wait()
        self.next += 1
        return self.next - 1


async def other_reader_gets(source, cancels):
    may_go_on = anyio.Event()
    first, second = tee(source(may_go_on))
    got = []
    scope = anyio.CancelScope()

    async def read_first():
        with scope:
            async for _ in first:
                pass

    async def read_second():
        async for item in second:
            got.append(item)

    async with anyio.create_task_group() as group:
        group.start_soon(read_first)
        await settle()  # it waits for the third item
        group.start_soon(read_second)
        await settle()
        if cancels:
            scope.cancel()
            await settle()
        may_go_on.set()
    return got


expected = {
    (generator, False): [0, 1, 2, 3, 4],
    (generator, True): [0, 1],
    (Items, False): [0, 1, 2, 3, 4],
    (Items, True): [0, 1, 2, 3, 4],
}
changed = False
print("anyio", version("anyio"), "trio", version("trio"))
for backend in ("trio", "asyncio"):
    for (source, cancels), wanted in expected.items():
        got = anyio.run(other_reader_gets, source, cancels, backend=backend)
        print(f"{backend:8} {source.__name__:10} the first reader is {'cancelled' if cancels else 'left alone'}: the second gets {got}, and no error")
        changed = changed or got != wanted
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py"
