#!/bin/sh
# A timeout inside a generator of trio's as_safe_channel cancels the task that reads from it, in its own code, and no error tells.
#
# Guess: with `@trio.as_safe_channel` a timeout around a `yield` is safe, as its docstring says. If `trio.fail_after` runs out, the reader gets
#   TooSlowError. If `trio.move_on_after` runs out, the generator goes on behind that block. Neither touches the code of the reader.
# Seen: trio 0.35.0. It depends on who waits when the time is up. If the generator waits, it is as guessed. If the reader does (it works on an item,
#   and the generator stands at its `yield`), the reader is cancelled in whatever it awaits, and its `async with` block ends as if all were well:
#   an item is done by half, the items after it are missing, the generator gets GeneratorExit, and TooSlowError is never raised.
# Why it matters: a generator that gives a download or a log 30 s, read by a task that writes to a slow disk, ends with a file that is cut, in code that
#   looks safe. In a test whose reader is fast it goes right.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check trio==0.35.0

cat > "$folder/program.py" <<'PYTHON'
import sys

import trio
from trio.testing import MockClock


def source(timeout, each_takes, notes):
    """Return a safe channel of five items, with a timeout of a second around all of them."""

    @trio.as_safe_channel
    async def items():
        try:
            with timeout(1):
                for item in range(5):
                    await trio.sleep(each_takes)
                    yield item
            yield "behind the block"
        except BaseException as error:
            notes.append(f"the generator gets {type(error).__name__}")
            raise

    return items()


async def read(timeout, generator_takes, reader_takes):
    """Return which items were begun and ended, and what else happened."""
    begun, ended, notes = [], [], []
    try:
        async with source(timeout, generator_takes, notes) as channel:
            async for item in channel:
                begun.append(item)
                try:
                    await trio.sleep(reader_takes)
                except trio.Cancelled:
                    notes.append("the reader gets Cancelled")
                    raise
                ended.append(item)
            notes.append("the loop ends")
        notes.append("no error")
    except Exception as error:
        notes.append(f"{type(error).__name__} behind the block")
    return begun, ended, notes


CUT = ([0, 1, 2], [0, 1], ["the generator gets GeneratorExit", "the reader gets Cancelled", "no error"])
CUT_OTHER_ORDER = (CUT[0], CUT[1], ["the reader gets Cancelled", "the generator gets GeneratorExit", "no error"])
expected = [
    (trio.fail_after, 0.4, 0, [([0, 1], [0, 1], ["the generator gets TooSlowError", "the loop ends", "TooSlowError behind the block"])]),
    (trio.fail_after, 0, 0.4, [CUT, CUT_OTHER_ORDER]),
    (trio.move_on_after, 0.4, 0, [([0, 1, "behind the block"], [0, 1, "behind the block"], ["the loop ends", "no error"])]),
    (trio.move_on_after, 0, 0.4, [CUT, CUT_OTHER_ORDER]),
]
print("trio", trio.__version__)
changed = False
for timeout, generator_takes, reader_takes, wanted in expected:
    begun, ended, notes = trio.run(read, timeout, generator_takes, reader_takes, clock=MockClock(autojump_threshold=0))
    print(f"{timeout.__name__}(1), an item takes the generator {generator_takes} s and the reader {reader_takes} s:")
    print(f"    begun {begun}, ended {ended}; {', '.join(notes)}")
    changed = changed or (begun, ended, notes) not in wanted
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py"
