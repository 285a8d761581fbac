"""`AsyncDirectory` while another process renames the components of the paths: no byte comes from outside, and none gets there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ..support.programs import run
from ..support.seccomp import REFUSE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

OPENS = 10_000

# What is renamed, again and again: a directory becomes a link to what is outside, absolute and relative, and is moved out itself.
SWAP = """
import os, sys
inside, outside = sys.argv[1:]
b, c = f"{inside}/a/b", f"{inside}/a/b/c"
print("ready", flush=True)
while True:
    os.rename(b, f"{inside}/a/aside")
    os.symlink(outside, b)
    os.unlink(b)
    os.symlink("../../outside", b)
    os.unlink(b)
    os.rename(f"{inside}/a/aside", b)
    os.rename(b, f"{outside}/moved")
    os.rename(f"{outside}/moved", b)
    os.rename(c, f"{outside}/moved")
    os.symlink("../../../outside/c", c)
    os.unlink(c)
    os.rename(f"{outside}/moved", c)
"""

LOOK = """
import itertools
from trio_aio import open_directory

refused_number = {number!r}
if refused_number:
    refuse(refused_number, errno.ENOSYS)
inside, outside = sys.argv[2:4]
# What leads out whatever is renamed, and what leads to a file inside unless it is renamed.
OUT = [outside + "/secret", "a/../../outside/secret", "a/b/../../../outside/secret"]
IN = ["a/b/c/secret", "a/b/c/../c/secret", "a/b/c/../../secret", "a/./b//c/../../b/c/secret"]
EXPECTED = (errno.EXDEV, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EAGAIN)
secret = {{os.stat(outside + name).st_ino for name in ("/secret", "/c/secret", "")}}

async def main():
    read, refused = dict.fromkeys(IN, 0), 0
    async with open_directory(inside) as directory:
        for i in itertools.count():
            if i >= {opens} and all(read.values()) and refused:
                break
            assert i < 100 * {opens}, read
            name = (*IN, *OUT)[i % (len(IN) + len(OUT))]
            try:
                if i % 3 == 0:
                    async with directory.open(name) as file:
                        found = await file.read()
                elif i % 3 == 1:
                    found = await directory.read_bytes(name)
                else:
                    async with directory.open(name, "r+b") as file:
                        found = await file.pread(100, 0)
                assert name in IN, (name, found)
                assert found == b"inside", (name, found)
                read[name] += 1
                if i % 5 == 0:
                    assert (await directory.stat(name)).st_ino not in secret
                    assert await directory.write_bytes("a/b/c/new", b"mine", atomic=i % 2 == 0) == 4
                    assert "only outside" not in await directory.listdir("a/b/c")
                    assert "only outside" not in [entry.name async for entry in directory.scandir("a/b")]
            except OSError as error:
                assert error.errno in EXPECTED, error
                assert name in IN or error.errno in EXPECTED
                refused += 1
    print(sum(read.values()), refused)

trio.run(main)
"""


@pytest.fixture
def swapped(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder and one beside it, while another process renames what is in the first."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "a/b/c").mkdir(parents=True)
    (outside / "c").mkdir(parents=True)
    for name in ("a/b/c/secret", "a/secret"):
        (inside / name).write_bytes(b"inside")
    for name in ("secret", "c/secret", "only outside", "c/only outside"):
        (outside / name).write_bytes(b"secret")
    swapper = subprocess.Popen([sys.executable, "-c", SWAP, inside, outside], stdout=subprocess.PIPE)
    assert swapper.stdout is not None
    assert swapper.stdout.readline() == b"ready\n"
    try:
        yield inside, outside
        assert swapper.poll() is None, "the other process has failed"
    finally:
        swapper.kill()
        swapper.wait()
        swapper.stdout.close()


@pytest.mark.parametrize("without", ["", "openat2"])
def test_no_byte_comes_from_outside_in_many_opens(swapped: tuple[Path, Path], tmp_path: Path, without: str) -> None:
    inside, outside = swapped
    (tmp_path / "data").write_bytes(b"")
    program = REFUSE + LOOK.format(number=437 if without else 0, opens=OPENS)
    read, refused = map(int, run(program, tmp_path / "data", inside, outside).split())
    assert read
    assert refused
    assert sorted(name for name in os.listdir(outside) if name != "moved") == ["c", "only outside", "secret"]
    assert sorted(os.listdir(outside / "c")) == ["only outside", "secret"]
    for name in ("secret", "c/secret"):
        assert (outside / name).read_bytes() == b"secret"
