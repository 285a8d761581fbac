"""What `import trio_aio` has loaded when the program loses its files: after chroot(2), in a sandbox, without a free descriptor."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from ..conftest import need
from ..support.files import make_file
from ..support.programs import check

if TYPE_CHECKING:
    from pathlib import Path

# What asyncio says in dev mode where the machine is busy.
SLOW = r"Executing <.*> took .* seconds\n"
# Uses each part of the package in a run, so that each import that it makes late is made.
USES = """
import os, sys

threads = True

async def use(path):
    with open(path, "rb") as plain:
        data = plain.read()
    assert await trio_aio.read_bytes(path) == data
    assert len(await trio_aio.read_text(path, "latin-1", newline="")) == len(data)
    await trio_aio.write_bytes(path, data)
    for direct in (False, True):
        async with trio_aio.AIOContext() as context, trio_aio.open_aio(path, "r+b", direct=direct, context=context) as file:
            await file.write(data[:4096])
            await file.pwrite(data[:4096], 0)
            await file.write_ranges([(0, data[:4096]), (8192, data[8192:12288])])
            await file.fsync()
            await file.read()
            await file.seek(0)
            await file.readline()
            assert b"".join([chunk async for chunk in file.chunks(5000)]) == data
            await file.read_blocks([0, 4096], 4096)
            await file.read_ranges([(0, 5)])
            async with file.writer() as writer:
                await writer.write(data)
            await file.stat()
            context.statistics()
            await context.pread(file.fileno(), 10, 0)
            await context.poll(file.fileno(), 1)
    async with trio_aio.open_aio(path, "r", encoding="latin-1") as text:
        await text.readline()
        await text.tell()
        await text.seek(0)
    if threads:
        async with trio_aio.open_aio(path, opener=os.open) as opened:
            await opened.pread(1, 0)
    stream = await trio_aio.FileReadStream.from_path(path)
    await stream.receive(5)
    await stream.aclose()
    try:
        await trio_aio.open_aio(path + ".not there")
    except FileNotFoundError:
        pass

def run(library, function, *args):
    if library == "trio":
        import trio
        trio.run(function, *args)
    else:
        import asyncio
        asyncio.run(function(*args))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"{name} is imported late")

async def nothing():
    pass

def lose_files(how, path):
    "Lose them, and return the path by which the file can be reached now."
    if how == "hook":
        sys.meta_path.insert(0, Refuse())
        return path
    os.chroot(os.path.dirname(path))
    os.chdir("/")
    return "/" + os.path.basename(path)
"""

LATE = """
import trio_aio
assert "trio" not in sys.modules and "asyncio" not in sys.modules
library, how, path = sys.argv[1:]
run(library, nothing)
threads = library == "trio"  # asyncio itself imports its threads late
run(library, use, lose_files(how, path))
"""
EARLY = """
library, how, path = sys.argv[1:]
run(library, nothing)
assert "trio_aio" not in sys.modules
import trio_aio
run(library, use, lose_files(how, path))
"""
# After both libraries and anyio's backends have been imported.
BOTH = """
import anyio, asyncio, trio, trio_aio
library, how, path = sys.argv[1:]
anyio.run(nothing, backend=library)
anyio.run(use, lose_files(how, path), backend=library)
"""


@pytest.mark.parametrize("how", ["chroot", pytest.param("hook", marks=pytest.mark.slow)])
@pytest.mark.parametrize("library", ["trio", "asyncio"])
@pytest.mark.parametrize("order", ["EARLY", "LATE", "BOTH"])
def test_nothing_is_imported_late(disk: Path, order: str, library: str, how: str) -> None:
    need(how != "chroot" or os.geteuid() == 0, "root, for chroot(2)")
    path, _ = make_file(disk)
    check([sys.executable, "-X", "dev", "-c", USES + globals()[order], library, how, str(path)], harmless=SLOW)


NO_DESCRIPTORS = """
import errno, resource
library, path = sys.argv[1:]
run(library, nothing)
import trio_aio

async def main():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, limits[1]))
    try:
        await trio_aio.open_aio(path)
        raise AssertionError("it opened")
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await use(path)

run(library, main)
"""


@pytest.mark.parametrize("library", ["trio", "asyncio"])
def test_without_a_descriptor_the_error_is_that_of_open(disk: Path, library: str) -> None:
    path, _ = make_file(disk)
    check([sys.executable, "-X", "dev", "-c", USES + NO_DESCRIPTORS, library, str(path)], harmless=SLOW)


@pytest.mark.parametrize("before", ["", "trio", "asyncio"])
def test_import_loads_the_backends_of_what_is_imported(before: str) -> None:
    program = f"""
import sys
{f"import {before}" if before else ""}
imported = {{"trio", "asyncio"}} & sys.modules.keys()
import trio_aio
assert {{"trio", "asyncio"}} & sys.modules.keys() == imported
loaded = {{name.removeprefix("trio_aio._backends._") for name in sys.modules if name.startswith("trio_aio._backends._")}}
assert loaded == imported, loaded
assert "anyio._backends._asyncio" not in sys.modules and "anyio._backends._trio" not in sys.modules
"""
    check([sys.executable, "-c", program])


THREADS = """
import threading
import trio_aio
import trio, asyncio
path = sys.argv[1]
start = threading.Barrier(8)
backends = []

async def main():
    for _ in range(3):
        async with trio_aio.open_aio(path) as file:
            await file.pread(1, 0)
            backends.append(type(file.context._core.backend))

def thread(library):
    start.wait()
    run(library, main)

threads = [threading.Thread(target=thread, args=(library,)) for library in ("trio", "asyncio") * 4]
for each in threads:
    each.start()
for each in threads:
    each.join()
assert len(backends) == 24 and len(set(backends)) == 2, backends
"""


def test_runs_in_several_threads_load_a_backend_once(disk: Path) -> None:
    path, _ = make_file(disk)
    check([sys.executable, "-X", "dev", "-c", USES + THREADS, str(path)], harmless=SLOW)
