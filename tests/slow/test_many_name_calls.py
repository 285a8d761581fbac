"""What a process owns is the same after 100,000 calls on names of each kind: threads, descriptors, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..support.programs import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

CALLS, TASKS = 100_000, 8
GROWTH = 6 << 20  # bytes: 63 for each call

# Each may use: `name`, a file of 100 bytes; `tree`, a folder of 10 files; `directory`, an AsyncDirectory of it; `own`, this task's folder.
KINDS = {
    "stat": "await name.stat()",
    "absent": "await (name / 'x').exists()",
    "exists": "await name.exists()",
    "access": "await trio_aio.os.access(name, os.R_OK)",
    "readlink": "await (tree.parent / 'link').readlink()",
    "resolve": "await name.resolve()",
    "open": "async with await name.open('rb') as file: await file.read()",
    "open for writing": "async with await (own / 'w').open('wb') as file: pass",
    "small file": "await name.read_bytes()",
    "part of a file": "await trio_aio.read_bytes(name, offset=5, size=7)",
    "error": "await fails(trio_aio.os.rmdir, name)",
    "listing": "await tree.iterdir()",
    "listing with attributes": "await trio_aio.scandir(tree, stat=True)",
    "listing left early": "async for _ in tree.iterdir(): break",
    "glob": "await tree.rglob('*.none')",
    "walk": "await trio_aio.walk(tree)",
    "write": "await (own / 'w').write_bytes(b'x' * 100)",
    "atomic write": "await (own / 'w').write_bytes(b'x' * 100, atomic=True)",
    "rename": "await (own / names[i % 2]).rename(own / names[1 - i % 2])",
    "mkdir and rmdir": "await (own / 'd').mkdir(); await (own / 'd').rmdir()",
    "copy": "await trio_aio.copy_file(name, own / 'copy')",
    "directory": "await directory.stat('0'); await directory.read_bytes('0')",
    "open below a directory": "async with directory.open('0') as file: pass",
    "open_directory": "async with trio_aio.open_directory(tree) as opened: pass",
    "temporary file": "async with trio_aio.TemporaryFile(dir=own) as file: pass",
    "read_files": "await trio_aio.read_files([name])",
}

PROGRAM = """
import gc
import trio_aio
from trio_aio import Path
folder = Path(sys.argv[2])

async def fails(call, *arguments):
    try:
        await call(*arguments)
    except OSError:
        return
    raise AssertionError("it should have failed")

def used():
    gc.collect()
    with open("/proc/self/statm") as statm:
        memory = int(statm.read().split()[1]) * resource.getpagesize()
    return set(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), memory

async def all_closed():
    gc.collect()
    context = current_context()
    while context.statistics().in_flight or context._core.engine.drops:  # what was released is closed a moment later
        await trio.lowlevel.checkpoint()

async def call_many(number, calls, directory):
    name, tree, own, names = folder / "file", folder / "tree", folder / str(number), ("0", "1")
    for i in range(calls // {tasks}):
        {call}

async def main():
    await (folder / "file").write_bytes(b"x" * 100)
    await (folder / "tree").mkdir()
    for i in range(10):
        await (folder / "tree" / str(i)).touch()
    await (folder / "link").symlink_to("file")
    for number in range({tasks}):
        await (folder / str(number)).mkdir()
        await (folder / str(number) / "0").touch()
    async with trio_aio.open_directory(folder / "tree") as directory:
        async def play(calls):
            async with trio.open_nursery() as nursery:
                for number in range({tasks}):
                    nursery.start_soon(call_many, number, calls, directory)
        await play({calls} // 25)
        await all_closed()
        descriptors, threads, memory = used()
        await play({calls})
        await all_closed()
        now = used()
        assert now[0] == descriptors, now[0] ^ descriptors
        assert now[1] <= max(threads, {workers}), (threads, now[1])
        assert now[2] - memory < {growth}, now[2] - memory

trio.run(main)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_many_calls_leave_nothing_behind(on_filesystem: Callable[[str], Path], kind: str) -> None:
    folder = on_filesystem("tmpfs")  # a disk would only make it take longer
    (folder / "data").write_bytes(b"")
    (folder / "work").mkdir()
    program = PROGRAM.format(call=KINDS[kind], calls=CALLS, tasks=TASKS, growth=GROWTH, workers=TASKS + 2)
    run(program, folder / "data", folder / "work")
