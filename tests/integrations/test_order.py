"""Calls of many files that depend on each other. The model is `LocalFileSystem`, which makes one call after the other."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from fsspec.implementations.local import LocalFileSystem

from trio_aio.integrations.fsspec import AioFileSystem
from trio_aio.integrations.order import in_groups, known, nested

from ..conftest import need
from ..support.files import content

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def fs(fsspec_loop: object) -> AioFileSystem:
    return AioFileSystem()


@pytest.mark.parametrize(
    ("reads", "writes", "groups"),
    [
        ([], [], []),
        ([(), ()], [("a",), ("b",)], [[0], [1]]),
        ([(), (), ()], [("a",), ("b",), ("a",)], [[0, 2], [1]]),
        ([("a",), ("a",)], [("b",), ("c",)], [[0], [1]]),
        ([("a",), ("b",), ("x",)], [("b",), ("c",), ("y",)], [[0, 1], [2]]),
        ([("a",), ("b",), ("c",)], [("z",), ("a",), ("b",)], [[0, 1, 2]]),
        ([(), (), (), ()], [("a", "i"), ("b", "j"), ("c", "j"), ("d", "i")], [[0, 3], [1, 2]]),
    ],
)
def test_calls_that_use_one_file_are_in_one_group(reads: Any, writes: Any, groups: Any) -> None:
    assert in_groups(reads, writes) == groups


def test_paths_below_others_are_in_their_group() -> None:
    assert nested(["/a/b/c", "/x", "/a/b", "/y/z", "/a", "/x"]) == [[0, 2, 4], [1, 5], [3]]
    assert nested(["/", "/a"]) == [[0, 1]]


def test_names_of_one_file_have_something_in_common(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked").symlink_to("folder")
    (tmp_path / "folder/file").write_text("x")
    os.link(tmp_path / "folder/file", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("folder/file")
    (tmp_path / "dangling").symlink_to("folder/absent")
    (tmp_path / "loop").symlink_to("loop")

    async def main() -> None:
        names = ["folder/file", "linked/file", "hard", "soft", "folder/absent", "linked/absent", "dangling", "folder", "loop", "no/such"]
        found = [set(each.names) for each in await known([str(tmp_path / name) for name in names])]
        for group in (range(4), range(4, 7), range(7, 8), range(8, 9), range(9, 10)):
            for first in group:
                for second in range(len(names)):
                    assert bool(found[first] & found[second]) == (second in group), (names[first], names[second])

    trio.run(main)


def rotation(folder: Path) -> tuple[list[str], list[str]]:
    names = [str(folder / f"log.{i}") for i in range(9)]
    return names[-2::-1], names[:0:-1]


def chain(folder: Path) -> tuple[list[str], list[str]]:
    names = [str(folder / f"log.{i}") for i in range(9)]
    return names[:-1], names[1:]


def aliases(folder: Path) -> tuple[list[str], list[str]]:
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("folder")
    targets = [f"{folder}/{name}" for name in ("folder/t", "link/t", "folder//t", "u", "folder/../u")]
    return [str(folder / f"log.{i}") for i in (0, 1, 2, 4, 3)], targets


@pytest.mark.parametrize("call", ["copy", "put", "get"])
@pytest.mark.parametrize("plan", [rotation, chain, aliases])
def test_copies_that_depend_on_each_other_are_made_in_order(
    fs: AioFileSystem, tmp_path: Path, call: str, plan: Callable[[Path], tuple[list[str], list[str]]]
) -> None:
    results = []
    for index, filesystem in enumerate((LocalFileSystem(), fs)):
        folder = tmp_path / str(index)
        folder.mkdir()
        for i in range(9):  # long ones first: they would be overtaken
            (folder / f"log.{i}").write_bytes(content(3_000_000 if i % 2 == 0 else 10, seed=i))
        getattr(filesystem, call)(*plan(folder))
        results.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert results[0] == results[1]


def test_last_value_of_a_file_with_several_names_counts(fs: AioFileSystem, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "soft").symlink_to("file")
    os.link(tmp_path / "file", tmp_path / "hard")
    for other in ("soft", "hard"):
        fs.pipe({str(tmp_path / other): bytes(3_000_000), str(tmp_path / "file"): b"x" * 1_500_000})
        assert (tmp_path / "file").read_bytes() == b"x" * 1_500_000
        fs.pipe({str(tmp_path / "file"): bytes(3_000_000), str(tmp_path / other): b"y"})
        assert (tmp_path / "file").read_bytes() == b"y"


def test_paths_and_what_is_below_them_are_removed_in_order(fs: AioFileSystem, tmp_path: Path) -> None:
    (tmp_path / "d/e/f").mkdir(parents=True)
    for i in range(50):
        (tmp_path / f"d/e/f/{i}").touch()
    below = sorted(fs.find(str(tmp_path / "d"), withdirs=True), reverse=True)
    assert below[-1] == str(tmp_path / "d")
    fs.rm(below, recursive=True)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("kind", ["loop", "through a file", "too long", "fifo", "socket"])
def test_source_that_is_no_file_is_missing(fs: AioFileSystem, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        (source / f"{i}").write_text(str(i))
    odd = source / "odd"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "socket":
        os.mknod(odd, stat.S_IFSOCK | 0o600)
    else:
        odd.symlink_to({"loop": "odd", "through a file": "0/x", "too long": "x" * 300}[kind])
    fs.copy(str(source), str(tmp_path / "target"), recursive=True)
    assert sorted(os.listdir(tmp_path / "target")) == ["0", "1", "2"]
    pairs = [str(source / "0"), str(odd)], [str(tmp_path / "a"), str(tmp_path / "b")]
    for call in (fs.copy, fs.get, fs.put):
        with pytest.raises(FileNotFoundError):
            call(*pairs)
    fs.copy(*pairs, on_error="ignore")
    fs.copy(*pairs, on_error="omit")
    assert not (tmp_path / "b").exists()


AS_NOBODY = """
import os, sys, fsspec.implementations.local
from trio_aio.integrations.fsspec import AioFileSystem
fs = AioFileSystem()
folder = os.getcwd() + "/"
import anyio._backends._asyncio  # nobody may not read it
os.setgroups([2000]); os.setgid(65534); os.setuid(65534)
for call in (fs.copy, fs.get, fs.put):
    call([folder + "source", folder + "source"], [folder + "closed/own", folder + "closed/group"])
    for target in ("closed/other", "open/read only", "open/other"):
        try:
            call([folder + "source"] * 2, [folder + target, folder + "open/new"])
        except PermissionError:
            pass
        else:
            raise AssertionError(target)
"""


def test_copies_of_several_files_need_the_permissions_that_one_needs(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root, to become nobody")
    for folder in ("closed", "open"):
        (tmp_path / folder).mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "source").write_text("new")
    (tmp_path / "source").chmod(0o644)
    for name, owner, group, mode in (
        ("closed/own", 65534, 65534, 0o600),
        ("closed/group", 0, 2000, 0o660),
        ("closed/other", 0, 0, 0o644),
        ("open/read only", 65534, 65534, 0o444),
        ("open/other", 0, 0, 0o644),
    ):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(mode)
        os.chown(tmp_path / name, owner, group)
    # Nobody may look into the folders above only from here.
    above = [folder for folder in tmp_path.parents if folder.stat().st_mode & 0o001 == 0]
    modes = [folder.stat().st_mode for folder in above]
    try:
        for folder in (tmp_path, *above):
            folder.chmod(0o755)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    finally:
        for folder, mode in zip(above, modes, strict=True):
            folder.chmod(mode & 0o7777)
    assert done.returncode == 0, done.stderr
    got = {name: (tmp_path / name).read_text() for name in ("closed/own", "closed/group", "closed/other", "open/read only", "open/other")}
    assert got == {"closed/own": "new", "closed/group": "new", "closed/other": "old", "open/read only": "old", "open/other": "old"}
    status = (tmp_path / "closed/group").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 2000, 0o660)


def test_error_that_is_known_is_raised_before_a_fifo_is_read(fs: AioFileSystem, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError):
        fs.cat([str(tmp_path / "fifo"), str(tmp_path / "file"), str(tmp_path / "absent")])
