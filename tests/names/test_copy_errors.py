"""Copies that cannot be made: what they raise or report, and that nothing remains of them."""

# What the calls are compared with blocks, and that is fine here.

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint

import trio_aio
from trio_aio import copy_file, copy_tree
from trio_aio.testing import FaultyContext

from ..support.files import content
from ..support.tasks import Noting
from ..support.trees import make_tree

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")]


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "source").mkdir()
    return make_tree(tmp_path / "source")


@pytest.mark.parametrize("exist_ok", [False, True])
@pytest.mark.parametrize("name", ["absent", "one.py", ""])
async def test_source_that_is_no_directory_leaves_no_target(
    source: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, exist_ok: bool
) -> None:
    monkeypatch.chdir(source)
    before = sorted(os.listdir(source))
    wanted = NotADirectoryError if name == "one.py" else FileNotFoundError
    for path in (name, os.fsencode(name)):
        with pytest.raises(wanted) as caught:
            await copy_tree(path, "target", exist_ok=exist_ok)
        assert caught.value.filename == path
        errors: list[OSError] = []
        assert await copy_tree(path, "target", exist_ok=exist_ok, on_error=errors.append) == 0
        assert [(type(error), error.filename) for error in errors] == [(wanted, path)]
    assert sorted(os.listdir(source)) == before


async def test_target_that_cannot_be_made_is_reported(source: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    before = sorted(os.listdir(source))
    for target, exist_ok, wanted in (
        ("b", False, FileExistsError),
        ("one.py", True, FileExistsError),
        ("broken", True, FileExistsError),
        ("absent/target", False, FileNotFoundError),
        ("absent/target", True, FileNotFoundError),
        ("one.py/target", True, NotADirectoryError),
    ):
        with pytest.raises(wanted) as caught:
            await copy_tree("a", target, exist_ok=exist_ok)
        assert caught.value.filename == target
        errors: list[OSError] = []
        assert await copy_tree("a", target, exist_ok=exist_ok, on_error=errors.append) == 0
        assert [(type(error), error.filename) for error in errors] == [(wanted, target)]
    assert sorted(os.listdir(source)) == before


async def test_target_that_another_program_makes_meanwhile_is_reported(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    errors: list[OSError] = []
    results: list[int] = []

    async def copy() -> None:
        results.append(await copy_tree(source, target, on_error=errors.append, context=context))

    async with FaultyContext() as context:
        with context.hang(operation="change", file=target) as renaming:
            async with create_task_group() as tasks:
                tasks.start_soon(copy)
                while not renaming.held:
                    await checkpoint()
                target.write_text("another program's")
                renaming.release()
    assert results == [0]
    assert [(type(error), error.filename) for error in errors] == [(FileExistsError, str(target))]
    assert target.read_text() == "another program's"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


async def test_error_that_on_error_raises_ends_the_copy(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def stop(error: OSError) -> None:
        raise BlockingIOError(errno.EAGAIN, "that of on_error") from error

    for exist_ok in (False, True):
        for first, second in ((tmp_path / "absent", tmp_path / "new"), (source / "a", source / "one.py")):
            with pytest.raises(BlockingIOError, match="that of on_error"):
                await copy_tree(first, second, exist_ok=exist_ok, on_error=stop)
    assert os.listdir(tmp_path) == ["source"]


class BytesPath:
    """A path that is bytes."""

    def __init__(self, path: str) -> None:
        self._path: str = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path, BytesPath])
async def test_errors_below_the_top_have_the_type_of_the_argument(source: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.chdir(source.parent)
    (source.parent / "target/one.py").mkdir(parents=True)
    (source.parent / "target/a").write_text("no directory")
    (source.parent / "target/link to file").mkdir()
    own: Any = os.fsdecode if isinstance(os.fspath(kind("x")), str) else os.fsencode
    errors: list[OSError] = []
    async with FaultyContext() as context:
        with (
            context.fail(errno.EIO, operation="list", file="source/b"),
            context.fail(errno.EIO, operation="change", file="source/.seven"),
            context.fail(errno.EIO, operation="change", file="target/empty", turn=2),
        ):
            await copy_tree(kind("source"), kind("target"), exist_ok=True, on_error=errors.append, context=context)
        assert {(error.filename, error.filename2) for error in errors} == {
            (own("target/one.py"), None),
            (own("target/a"), None),
            (own("target/link to file"), None),
            (own("source/b"), None),
            (own("source/.seven"), None),
            (own("target/empty"), None),
        }
        errors.clear()
        with (
            context.fail(errno.EIO, operation="list", file="source/b"),
            context.fail(errno.EIO, operation="change", file="source/a/one.py"),
        ):
            await trio_aio.remove_tree(kind("source"), on_error=errors.append, context=context)
        assert {own("source"), own("source/b"), own("source/a")} <= {error.filename for error in errors}
        assert {type(error.filename) for error in errors} == {type(own("x"))}
        errors.clear()
        with context.fail(errno.EIO, operation="list", file="source/b"):
            async for _ in trio_aio.walk(kind("source"), onerror=errors.append, context=context):
                pass
        assert [error.filename for error in errors] == [own("source/b")]
    calls: list[Callable[[], Any]] = [
        lambda: copy_file(kind("absent"), kind("target/new")),
        lambda: copy_file(kind("source/b/d/five"), kind("absent/new")),
        lambda: trio_aio.scandir(kind("absent")),
        lambda: trio_aio.remove_tree(kind("absent")),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError) as caught:
            await call()
        assert caught.value.filename in (own("absent"), own("absent/new"))


async def _closed_meanwhile(call: Callable[[FaultyContext], Any], turn: int, file: Any = None) -> bool:
    """Make a call whose context is closed while its request number `turn` hangs. Return whether that was met, and had ended the call."""
    refused = []
    async with FaultyContext(max_workers=2) as context:
        with context.hang(turn=turn, file=file) as hang:
            async with create_task_group() as tasks:

                async def make_call() -> None:
                    try:
                        await call(context)
                    except RuntimeError as error:
                        refused.append(str(error))
                    tasks.cancel_scope.cancel()

                tasks.start_soon(make_call)
                while not hang.held:
                    await checkpoint()
                tasks.start_soon(context.aclose)
                while "open" in repr(context):
                    await checkpoint()
                hang.release()
    assert all("make a new one" in each for each in refused)
    return bool(refused)


async def test_copy_of_a_tree_whose_context_is_closed_leaves_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "source/inner").mkdir(parents=True)
    for name in ("one", "two", "inner/three"):
        (tmp_path / "source" / name).write_text(name)
    turn = 1
    while await _closed_meanwhile(lambda context: copy_tree(tmp_path / "source", tmp_path / "copy", depth=2, context=context), turn):
        assert os.listdir(tmp_path) == ["source"]
        turn += 1
    assert turn > 8
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


@pytest.mark.parametrize("call", [copy_file, copy_tree])
async def test_copy_in_several_pieces_whose_context_is_closed_leaves_nothing(disk: pathlib.Path, call: Any) -> None:
    for name in ("source", "copies"):
        (disk / name).mkdir()
    path = disk / "source/file"
    path.write_bytes(content(1 << 20) * 65)  # two pieces
    first, second = (path, disk / "copies/file") if call is copy_file else (path.parent, disk / "copies/tree")
    assert await _closed_meanwhile(lambda context: call(first, second, context=context), 1, path)
    assert os.listdir(disk / "copies") == []


@pytest.mark.backends("asyncio", "asyncio+uvloop")
@pytest.mark.parametrize("times", [1, 2])
async def test_native_cancellation_while_the_context_is_closed_leaves_nothing(tmp_path: pathlib.Path, times: int) -> None:
    (tmp_path / "source/inner").mkdir(parents=True)
    (tmp_path / "source/inner/file").write_text("x")
    for turn in itertools.count(1):
        async with FaultyContext() as context:
            with context.hang(turn=turn) as hang:
                noting = Noting(partial(copy_tree, tmp_path / "source", tmp_path / "copy", context=context))
                while not hang.held and not noting.task.done():
                    await checkpoint()
                if noting.task.done():
                    break
                async with create_task_group() as tasks:
                    tasks.start_soon(context.aclose)
                    while "open" in repr(context):
                        await checkpoint()
                    for _ in range(times):
                        noting.task.cancel()
                        await checkpoint()
                    hang.release()
                    await noting.cancellation()
        found = sorted(os.listdir(tmp_path))
        assert found in (["source"], ["copy", "source"])  # the rename had started
        if len(found) == 2:
            shutil.rmtree(tmp_path / "copy")
    assert await noting.task == 3
