"""What calls of 10,000 files take: the memory of their results and little more, and as many descriptors as the depth says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from ..support.programs import check

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

COUNT, SIZE = 10_000, 16 << 10
MAX_BYTES = 64 << 20  # the default of `read_files`
SLACK = 16 << 20  # bytes: tasks, lists, and a header for each result

# How each call is made, what it returns of each file, and how much memory it may hold besides.
CALLS = {
    "cat": ("list(fs.cat(paths).values())", "[0:]", MAX_BYTES),
    "cat_ranges of whole files": ("fs.cat_ranges(paths, None, None)", "[0:]", MAX_BYTES),
    "cat_ranges": ("fs.cat_ranges(paths, 10, 1 << 14)", "[10:]", 0),
    "cat_ranges from the end": ("fs.cat_ranges(paths, -16000, None)", "[-16000:]", 0),
    "cat_ranges of two ranges": ("fs.cat_ranges(paths * 2, [0] * COUNT + [8192] * COUNT, [8192] * COUNT + [1 << 14] * COUNT)", "[0:]", 0),
    "read_files": ("asyncio.run(read_all())", "[0:]", MAX_BYTES),
    "read_files, one after the other": ("asyncio.run(iterate(8 << 20))", None, 8 << 20),
}

PROGRAM = """
import asyncio, gc, os, resource, sys
import trio_aio
from trio_aio.integrations.batches import DEPTH
from trio_aio.integrations.fsspec import AioFileSystem

COUNT, SIZE, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
paths = [f"{folder}/{index:05}" for index in range(COUNT)]
block = os.urandom(SIZE + COUNT)
fs = AioFileSystem()
most = 0

def opened():
    return [int(name) for name in os.listdir("/proc/self/fd")]

def is_ours(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(folder)
    except FileNotFoundError:  # closed meanwhile
        return False

def count():
    global most
    most = max(most, sum(map(is_ours, opened())))

def counting(function):
    async def counted(*arguments, **options):
        count()
        return await function(*arguments, **options)
    return counted

async def read_all():
    return await trio_aio.read_files(paths, depth=DEPTH)

async def iterate(max_bytes):
    at = 0
    async for path, data in trio_aio.read_files(paths, depth=DEPTH, max_bytes=max_bytes):
        assert data == block[at : at + SIZE], path
        at += 1
        if at % 100 == 0:
            count()
    assert at == COUNT

def memory(field):
    with open("/proc/self/status") as status:
        return int(status.read().split(field + ":")[1].split()[0]) << 10

for index, path in enumerate(paths):
    with open(path, "wb") as made:
        made.write(block[index : index + SIZE])
# All that is made once: the loop, workers, buffers, modules.
fs.cat(paths[:200]), fs.cat_ranges(paths[:200] * 2, -5, None)
trio_aio.AsyncFile.pread, trio_aio.AsyncFile.read_ranges = counting(trio_aio.AsyncFile.pread), counting(trio_aio.AsyncFile.read_ranges)
# The kernel refuses a descriptor more than the depth, besides that of `opened`, and those of a loop and an engine of `asyncio.run`.
now = opened()
limit, free = max(now) + 1, max(now) + 1 - len(now)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit + DEPTH + int(sys.argv[4]) - free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
gc.collect()
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = memory("VmRSS")
found = CALL
used = memory("VmHWM") - before
found = found or []
returned = sum(map(len, found))
for index, data in enumerate(found[:COUNT]):
    data += b"".join(found[COUNT + index :: COUNT])  # of the other ranges
    assert data == block[index : index + SIZE]PART, (index, data)
print(used - returned, most)
"""


@pytest.mark.parametrize("call", CALLS)
def test_call_of_10000_files_is_bounded(tmp_path: Path, call: str) -> None:
    made, part, besides = CALLS[call]
    program = PROGRAM.replace("CALL", made).replace("PART", part or "")
    own_loop = 8 if "asyncio.run" in made else 0
    printed = check([sys.executable, "-c", program, str(COUNT), str(SIZE), str(tmp_path), str(own_loop)])
    more, most = map(int, printed.split())
    assert more <= besides + SLACK
    assert most <= 64
    if "from the end" in call or "two" in call:
        assert most > 1  # they were counted
    for path in tmp_path.iterdir():  # not kept with the last runs' folders
        path.unlink()
