"""The interpreter ends while requests are in flight, in a loop that nothing closes: their memory stays until the process is gone."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ..conftest import need
from ..support.files import make_file
from ..support.fuse import Misbehaving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READS, STEP = 4, 1 << 20  # the kernel reads ahead less than a step
_numbers = itertools.count()

# The buffers belong to requests, and no request is answered while the loop does not run: so none of them may be freed.
PROLOGUE = """
import asyncio, os, sys, warnings
from trio_aio import open_aio
warnings.simplefilter("ignore")
path, direct, end = sys.argv[1], sys.argv[2] == "direct", sys.argv[3]

class Buffer(bytearray):
    def __del__(self, write=os.write):
        write(1, b"freed\\n")

async def opened():
    "Open the file, so that its direct reads stay in the kernel lane from now on."
    file = await open_aio(path, direct=direct)
    while direct:
        before = file.context.statistics()
        await file.pread(4096, 0)
        now = file.context.statistics()
        counts = now.submitted_kernel, now.retried
        if counts == (before.submitted_kernel + 1, before.retried) and not file._descriptor.read_device.skips_left:
            break
    return file

def say_and_wait():
    print("started", flush=True)
    sys.stdin.readline()
"""
ASYNCIO = """
loop = asyncio.new_event_loop()

async def start():
    file = await opened()
    tasks = [asyncio.ensure_future(file.preadinto(Buffer(4096), STEP * i)) for i in range(1, READS)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return file, tasks

kept = loop.run_until_complete(start())
say_and_wait()
"""
# A guest's host that stops to run it.
TRIO = """
import queue, trio, trio.testing
ticks, kept = queue.Queue(), []

async def main():
    file = await opened()
    async with trio.open_nursery() as nursery:
        for i in range(1, READS):
            nursery.start_soon(file.preadinto, Buffer(4096), STEP * i)
        await trio.testing.wait_all_tasks_blocked()
        kept.append(file)

trio.lowlevel.start_guest_run(main, run_sync_soon_threadsafe=ticks.put, done_callback=print)
while not kept:
    ticks.get()()
say_and_wait()
"""
ENDS = """
if end == "exit":
    sys.exit(7)
if end == "raise":
    raise SystemExit(7)
if end == "drop":
    del kept
if end == "drop all" and "loop" in globals():
    del kept, loop
"""


@pytest.fixture(scope="module")
def _filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misbehaving]:
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a filesystem of its own")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    filesystem = Misbehaving(tmp_path_factory.mktemp("misbehaving"))
    yield filesystem
    filesystem.end()


@pytest.fixture
def device(_filesystem: Misbehaving) -> Iterator[Misbehaving]:
    _filesystem.reset()
    yield _filesystem
    _filesystem.reset()


@pytest.mark.parametrize(
    "end", ["return", "drop all", pytest.param("exit", marks=pytest.mark.slow), pytest.param("drop", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("direct", ["buffered", pytest.param("direct", marks=pytest.mark.slow)])
@pytest.mark.parametrize("library", ["ASYNCIO", "TRIO"])
def test_exit_frees_no_memory_in_flight(device: Misbehaving, tmp_path: Path, library: str, direct: str, end: str) -> None:
    name = f"file{next(_numbers)}"  # none of its pages is cached
    make_file(device.source, READS * STEP, name)
    program = f"READS, STEP = {READS}, {STEP}\n" + PROLOGUE + globals()[library] + ENDS
    command = [sys.executable, "-c", program, str(device.folder / name), direct, end]
    for i in range(1, READS):  # opening for direct I/O reads at the beginning
        device.answer(name, "read", hang=True, offset=STEP * i)
    with (tmp_path / "stderr").open("w+") as said:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin, child.stdout:
            assert child.stdout.readline() == "started\n"
            while device.held() < READS - 1:
                os.sched_yield()
            child.stdin.write("end\n")
            child.stdin.flush()
            device.release()  # the kernel waits for them before the process is gone
            assert child.stdout.read() == ""
            assert child.wait() == (7 if end == "exit" else 0), (tmp_path / "stderr").read_text()
