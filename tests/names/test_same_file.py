"""Copies and moves whose ends are the same file, and those where they only look like it."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import Path, copy_file, copy_tree

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the working directory, with a file, and links of each kind to it and to nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_text("precious")
    (tmp_path / "inner/deep").mkdir(parents=True)
    os.link("data", "hard")
    for name, target in {
        "link": "data",
        "absolute": str(tmp_path / "data"),
        "outer": "link",
        "inner/up": "../data",
        "dangling": "nothing",
        "to directory": "inner",
    }.items():
        (tmp_path / name).symlink_to(target)
    os.link("link", "hard link to the link", follow_symlinks=False)
    os.link("dangling", "hard link to the dangling link", follow_symlinks=False)
    return tmp_path


def seen(folder: pathlib.Path) -> dict[str, Any]:
    """Return what is in a folder: numbers, and what links point to or files contain."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        text = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else None
        found[str(path.relative_to(folder))] = (path.lstat().st_ino, text)
    return found


SAME = [
    ("data", "data"),
    ("data", "hard"),
    ("link", "data"),
    ("link", "hard"),
    ("absolute", "data"),
    ("outer", "data"),
    ("outer", "link"),
    ("link", "outer"),
    ("link", "absolute"),
    ("inner/up", "data"),
    ("inner/up", "link"),
    ("data", "link"),
    ("data", "outer"),
    ("hard", "inner/up"),
    ("link", "link"),
    ("link", "hard link to the link"),
]


async def test_copy_of_a_file_or_a_link_onto_itself_is_refused(folder: pathlib.Path) -> None:
    before = seen(folder)
    for source, target in SAME:
        with pytest.raises(shutil.SameFileError):
            shutil.copyfile(source, target, follow_symlinks=False)
        calls: list[Callable[..., Awaitable[Any]]] = [
            partial(copy_file, source, target),
            partial(copy_file, os.fsencode(source), os.fsencode(target), durable=True),
            partial(copy_file, folder / source, target, preserve_metadata=True),
            partial(Path(source).copy, target),
        ]
        for call in calls:
            for follow in (True, False):
                with pytest.raises(shutil.SameFileError):
                    await call(follow_symlinks=follow)
        assert seen(folder) == before, (source, target)


async def test_copy_of_a_dangling_link_onto_itself_is_refused(folder: pathlib.Path) -> None:
    before = seen(folder)
    for target in ("dangling", "hard link to the dangling link"):
        with pytest.raises(shutil.SameFileError):
            await copy_file("dangling", target, follow_symlinks=False)
    assert seen(folder) == before


async def test_link_replaces_what_it_does_not_lead_to(folder: pathlib.Path) -> None:
    (folder / "other").write_text("other")
    (folder / "link to other").symlink_to("other")
    for source, target in (("dangling", "other"), ("dangling", "link"), ("link to other", "data"), ("link", "link to other")):
        assert await copy_file(source, target, follow_symlinks=False) == 0
        assert os.readlink(target) == os.readlink(source)
    assert (folder / "hard").read_text() == "precious"


async def test_link_replaces_one_with_the_same_text(folder: pathlib.Path) -> None:
    for source, target in (("link", "second"), ("absolute", "inner/deep/absolute"), ("inner/up", "inner/second")):
        for _ in range(2):
            assert await copy_file(source, target, follow_symlinks=False) == 0
            assert os.readlink(target) == os.readlink(source)
    assert (folder / "data").read_text() == "precious"


async def test_copy_of_a_tree_destroys_no_file_that_its_links_lead_to(tmp_path: pathlib.Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name / "inner").mkdir(parents=True)
    for name, target in {"link": "../target/link", "inner/absolute": str(tmp_path / "target/inner/absolute")}.items():
        (tmp_path / "source" / name).symlink_to(target)
        (tmp_path / "target" / name).write_text("precious")
    (tmp_path / "source/file").write_text("source's")
    (tmp_path / "target/file").symlink_to("../source/file")
    errors: list[OSError] = []
    before = seen(tmp_path)
    assert await copy_tree(tmp_path / "source", tmp_path / "target", exist_ok=True, on_error=errors.append) == 0
    assert [type(error) for error in errors] == [shutil.SameFileError] * 3
    assert seen(tmp_path) == before
    with pytest.raises(shutil.SameFileError):
        await copy_tree(os.fsencode(tmp_path / "source"), os.fsencode(tmp_path / "target"), exist_ok=True)
    assert seen(tmp_path) == before


async def test_tree_with_links_that_lead_out_of_it_is_copied_twice(folder: pathlib.Path) -> None:
    (folder / "source").mkdir()
    for name, target in {"up": "../data", "absolute": str(folder / "data"), "directory": "../inner", "dangling": "nothing"}.items():
        (folder / "source" / name).symlink_to(target)
    for _ in range(2):
        await copy_tree(folder / "source", folder / "target", exist_ok=True)
        assert {name: os.readlink(f"target/{name}") for name in os.listdir("target")} == {
            name: os.readlink(f"source/{name}") for name in os.listdir("source")
        }


# ---- moves: rename(2) does nothing for two names of one file, and would let a link replace what it leads to


MOVED = [
    *SAME,
    ("inner", "inner"),
    ("inner", "to directory"),
    ("to directory", "inner"),
    ("dangling", "dangling"),
    ("dangling", "hard link to the dangling link"),
]


async def test_move_onto_the_same_file_is_refused(folder: pathlib.Path) -> None:
    before = seen(folder)
    for source, target in MOVED:
        for first, second in ((source, target), (target, source), (str(folder / source), target)):
            with pytest.raises(shutil.SameFileError) as caught:
                await Path(first).move(second)
            error = caught.value
            assert (error.errno, error.filename, error.filename2) == (errno.EINVAL, first, second)
        assert seen(folder) == before, (source, target)


async def test_move_into_a_directory_that_has_the_same_file_is_refused(folder: pathlib.Path) -> None:
    os.link("data", "inner/data")
    before = seen(folder)
    for path, into in (("data", "inner"), ("inner/data", "."), ("data", "."), ("inner", ".")):
        with pytest.raises(shutil.SameFileError):
            await Path(path).move_into(into)
    assert seen(folder) == before


async def test_move_replaces_another_file(folder: pathlib.Path) -> None:
    (folder / "other").write_text("other")
    assert await Path("other").move("link") == Path("link")
    assert (folder / "link").read_text() == "other"
    assert await Path("dangling").move("link") == Path("link")
    assert os.readlink("link") == "nothing"
    assert (folder / "data").read_text() == "precious"
    for name in ("other", "dangling"):
        assert not os.path.lexists(name)
