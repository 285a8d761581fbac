"""How much memory a program takes that reads or copies a large file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anyio
import pytest

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [pytest.mark.slow, pytest.mark.anyio]

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])

_PEAK = """
import sys, trio
from trio_aio import open_aio

async def main(source, copy, direct):
    total = 0
    async with open_aio(source, direct=direct) as file:
        if copy:
            async with open_aio(copy, "wb", direct=direct) as target, target.writer() as writer:
                async for chunk in file.chunks():
                    total += await writer.write(chunk)
        else:
            async for chunk in file.chunks():
                total += len(chunk)
    status = open("/proc/self/status").read()
    print(total, status.split("VmHWM:")[1].split()[0])

trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3] == "direct")
"""


@pytest.mark.backends("trio")  # the program has a loop of its own
@MODES
@pytest.mark.parametrize("copied", [False, True], ids=["read", "copied"])
async def test_large_file_needs_memory_for_the_depth_only(tmp_path: Path, direct: bool, copied: bool) -> None:
    size = 8 << 30 if direct and not copied else 1 << 30  # what goes to the disk or through the page cache takes its time
    source, copy = tmp_path / "sparse", tmp_path / "copy"
    with source.open("wb") as made:
        made.truncate(size)
    arguments = [sys.executable, "-c", _PEAK, str(source), str(copy) if copied else "", "direct" if direct else "buffered"]
    done = await anyio.run_process(arguments, stderr=None)
    total, peak = map(int, done.stdout.split())
    assert total == size
    assert peak < 100 << 10  # KiB
    if copied:
        assert copy.stat().st_size == size
        copy.unlink()  # not kept with the last runs' folders
