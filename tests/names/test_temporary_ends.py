"""The ends of temporary names: cancellation while one is made or removed, modes that forbid a removal, and `cleanup` called again."""

# What is looked at blocks, and that is fine here.

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.lowlevel import checkpoint

import trio_aio
from trio_aio import NamedTemporaryFile, SpooledTemporaryFile, TemporaryDirectory, TemporaryFile, mkdtemp, mkstemp
from trio_aio._names import temporary
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support import programs
from ..support.tasks import Noting
from ..support.trees import make_tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]
on_asyncio = pytest.mark.backends("asyncio")


async def entered(manager: Any) -> None:
    async with manager:
        pass


# ---- asyncio's own Task.cancel, which passes every shield


async def cancelled_natively(
    call: Callable[[], Awaitable[Any]], hang: Any, *, times: int = 1, error: int | None = None
) -> asyncio.CancelledError:
    """Start a call, cancel its task when its request hangs, let that run, and return the cancellation that the call has raised."""
    noting = Noting(call)
    while not hang.held:
        await checkpoint()
    for _ in range(times):
        noting.task.cancel("the test's")
        await checkpoint()
    hang.release(error)
    return await noting.cancellation()


MADE: dict[str, tuple[Any, Callable[[Path, Any], Awaitable[Any]]]] = {
    "mkstemp": ("open", lambda path, context: mkstemp(dir=str(path), context=context)),
    "mkdtemp": ("change", lambda path, context: mkdtemp(dir=str(path), context=context)),
    "NamedTemporaryFile": ("open", lambda path, context: entered(NamedTemporaryFile(dir=path, context=context))),
    "kept file": ("open", lambda path, context: entered(NamedTemporaryFile(dir=path, delete=False, context=context))),
    "TemporaryFile": ("open", lambda path, context: entered(TemporaryFile(dir=path, context=context))),
    "TemporaryDirectory": ("change", lambda path, context: entered(TemporaryDirectory(dir=path, context=context))),
    "kept directory": ("change", lambda path, context: entered(TemporaryDirectory(dir=path, delete=False, context=context))),
}


@on_asyncio
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", MADE)
async def test_native_cancellation_while_a_name_is_made_leaves_none(tmp_path: Path, name: str, times: int) -> None:
    operation, call = MADE[name]
    async with FaultyContext() as context:
        with context.hang(operation=operation, times=1) as hang:
            await cancelled_natively(lambda: call(tmp_path, context), hang, times=times)
        assert os.listdir(tmp_path) == []


@on_asyncio
async def test_native_cancellation_while_a_name_is_taken_back_leaves_none(tmp_path: Path) -> None:
    async with FaultyContext() as context:
        with context.hang(operation="open", times=1) as making, context.hang(operation="change", times=1) as removing:
            task = asyncio.ensure_future(mkstemp(dir=str(tmp_path), context=context))
            while not making.held:
                await checkpoint()
            task.cancel()
            making.release()
            while not removing.held:
                await checkpoint()
            assert len(os.listdir(tmp_path)) == 1
            task.cancel()
            await checkpoint()
            removing.release()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert os.listdir(tmp_path) == []


async def make_one(name: str, path: Path, context: Any) -> tuple[Callable[[], Awaitable[Any]], str]:
    """Make a temporary name, and return the call that removes it and the first operation of the removal."""
    if name == "cleanup":
        directory = await TemporaryDirectory(dir=path, context=context)
        make_tree(Path(directory.name))
        return directory.cleanup, "list"
    if name == "aclose":
        file = await NamedTemporaryFile(dir=path, context=context)
        return file.aclose, "change"
    manager = (
        TemporaryDirectory(dir=path, context=context)
        if name == "directory"
        else NamedTemporaryFile(dir=path, delete_on_close=name != "kept until left", context=context)
    )
    made = await manager.__aenter__()
    if name == "directory":
        make_tree(Path(str(made)))
    return lambda: manager.__aexit__(None, None, None), "list" if name == "directory" else "change"


REMOVED = ["aclose", "file", "kept until left", "cleanup", "directory"]


@on_asyncio
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", REMOVED)
async def test_native_cancellation_while_a_name_is_removed_leaves_none(tmp_path: Path, name: str, times: int) -> None:
    async with FaultyContext() as context:
        call, operation = await make_one(name, tmp_path, context)
        with context.hang(operation=operation, times=1) as hang:  # type: ignore[arg-type]
            error = await cancelled_natively(call, hang, times=times)
        assert error.args == ("the test's",)
        assert os.listdir(tmp_path) == []


@on_asyncio
@pytest.mark.parametrize("name", REMOVED)
async def test_native_cancellation_before_a_name_is_removed_leaves_none(tmp_path: Path, name: str) -> None:
    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("the test's")
        await call()

    async with FaultyContext() as context:
        call, _ = await make_one(name, tmp_path, context)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(cancelled())
        assert os.listdir(tmp_path) == []


@on_asyncio
@pytest.mark.parametrize("name", REMOVED)
async def test_native_cancellation_is_raised_also_when_the_removal_fails(tmp_path: Path, name: str) -> None:
    async with FaultyContext() as context:
        call, operation = await make_one(name, tmp_path, context)
        # It fails while the task is cancelled, and again when it is repeated.
        with context.hang(operation=operation, turn=1) as hang, context.fail(errno.EIO, operation=operation, turn=2):  # type: ignore[arg-type]
            error = await cancelled_natively(call, hang, error=errno.EIO)
        assert isinstance(error.__cause__, OSError)
        assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
async def test_file_is_removed_if_no_object_can_be_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(temporary, "open_descriptor", fail)
    raised = None
    try:
        await NamedTemporaryFile(dir=tmp_path)
    except error as caught:
        raised = type(caught)
    assert raised is error
    if error is MemoryError:  # otherwise a thread does it
        assert os.listdir(tmp_path) == []
    while os.listdir(tmp_path):
        await trio_aio.os.getcwd()


# ---- modes that forbid it, for a user who is not root

AS_NOBODY = """
import gc, shutil, tempfile
import trio_aio
from trio_aio import TemporaryDirectory

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
folder = sys.argv[2]
modes = [0o500, 0o300, 0o400, 0o200, 0]

def fill(top):
    # Directories of each mode, in and below one another, with a file in each, and empty ones.
    made = []
    for i, mode in enumerate(modes):
        path = top
        for j, inner in enumerate(modes):
            path = os.path.join(path, f"{i} {j}")
            os.mkdir(path)
            open(os.path.join(path, "file"), "w").close()
            os.mkdir(os.path.join(path, "empty"))
            made += [(os.path.join(path, "empty"), mode), (path, inner)]
            os.mkdir(os.path.join(path, "more"))
    for path, mode in sorted(made, reverse=True):
        os.chmod(path, mode)
"""


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Return a folder that every user may reach and write to: `tmp_path` is in one that keeps others out."""
    need(os.geteuid() == 0, "root, to become another user")
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o777)
    (path / "program's").touch()
    yield path
    shutil.rmtree(path)


def run_as_nobody(program: str, folder: Path) -> None:
    programs.run(AS_NOBODY + textwrap.dedent(program), folder / "program's", folder)
    assert os.listdir(folder) == ["program's"]


@pytest.mark.parametrize("mode", [0o700, 0o500, 0])
@pytest.mark.parametrize("ignore", [False, True])
def test_directories_that_forbid_their_removal_are_removed(shared_folder: Path, ignore: bool, mode: int) -> None:
    program = """
    async def main():
        async with TemporaryDirectory(dir=folder, ignore_cleanup_errors=IGNORE) as name:
            fill(name)
            os.chmod(name, MODE)

    trio.run(main)
    """
    run_as_nobody(program.replace("IGNORE", str(ignore)).replace("MODE", str(mode)), shared_folder)


def test_links_in_directories_that_forbid_their_removal_are_not_followed(shared_folder: Path) -> None:
    program = """
    async def main():
        outside = os.path.join(folder, "outside")
        os.mkdir(outside)
        os.chmod(outside, 0o500)
        async with TemporaryDirectory(dir=folder) as name:
            inner = os.path.join(name, "inner")
            os.mkdir(inner)
            os.symlink(outside, os.path.join(inner, "link"))
            os.chmod(inner, 0o500)
        assert os.stat(outside).st_mode & 0o777 == 0o500
        dropped = await TemporaryDirectory(dir=folder)
        inner = os.path.join(dropped.name, "inner")
        os.mkdir(inner)
        os.symlink(outside, os.path.join(inner, "link"))
        os.chmod(inner, 0o500)
        warnings.simplefilter("ignore")
        del dropped
        gc.collect()
        while len(os.listdir(folder)) > 2:
            await trio_aio.os.getcwd()
        assert os.stat(outside).st_mode & 0o777 == 0o500
        os.rmdir(outside)

    trio.run(main)
    """
    run_as_nobody(program, shared_folder)


def test_directory_that_forbids_its_removal_is_removed_when_it_is_dropped(shared_folder: Path) -> None:
    program = """
    async def main():
        warnings.simplefilter("ignore")
        directory = await TemporaryDirectory(dir=folder)
        fill(directory.name)
        os.chmod(directory.name, 0o500)
        del directory
        gc.collect()
        while len(os.listdir(folder)) > 1:
            await trio_aio.os.getcwd()

    trio.run(main)
    """
    run_as_nobody(program, shared_folder)


def test_directory_that_forbids_its_removal_is_removed_at_the_end_of_the_interpreter(shared_folder: Path) -> None:
    program = """
    async def main():
        global left
        warnings.simplefilter("ignore")
        left = await TemporaryDirectory(dir=folder)
        fill(left.name)

    trio.run(main)
    """
    run_as_nobody(program, shared_folder)


def test_remove_tree_itself_changes_no_mode(shared_folder: Path) -> None:
    program = """
    async def main():
        async with TemporaryDirectory(dir=folder) as name:
            open(os.path.join(name, "file"), "w").close()
            os.chmod(name, 0o500)
            try:
                await trio_aio.remove_tree(name)
            except PermissionError as error:
                assert error.filename == os.path.join(name, "file")
            else:
                raise AssertionError
            assert os.stat(name).st_mode & 0o777 == 0o500

    trio.run(main)
    """
    run_as_nobody(program, shared_folder)


# ---- cleanup called again


async def test_cleanup_removes_what_leaving_would_keep(tmp_path: Path) -> None:
    directory = TemporaryDirectory(dir=tmp_path, delete=False)
    async with directory as name:
        make_tree(Path(str(name)))
    assert len(os.listdir(tmp_path)) == 1
    await directory.cleanup()
    assert os.listdir(tmp_path) == []
    await directory.cleanup()


@pytest.mark.parametrize("delete", [True, False])
async def test_cleanup_that_failed_is_tried_again(tmp_path: Path, delete: bool) -> None:
    async with FaultyContext() as context:
        directory = await TemporaryDirectory(dir=tmp_path, delete=delete, context=context)
        make_tree(Path(directory.name))
        with context.fail(errno.EIO, operation="list"):
            for _ in range(2):
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    await directory.cleanup()
        await directory.cleanup()
        assert os.listdir(tmp_path) == []
        submitted = context.statistics().submitted_workers
        await directory.cleanup()
        assert context.statistics().submitted_workers == submitted


async def test_cleanup_that_has_ignored_errors_is_tried_again(tmp_path: Path) -> None:
    async with FaultyContext() as context:
        directory = await TemporaryDirectory(dir=tmp_path, ignore_cleanup_errors=True, context=context)
        make_tree(Path(directory.name))
        with context.fail(errno.EIO, operation="list"):
            await directory.cleanup()
        assert len(os.listdir(tmp_path)) == 1
        await directory.cleanup()
        assert os.listdir(tmp_path) == []


async def test_leaving_tries_a_cleanup_that_failed_again(tmp_path: Path) -> None:
    async with FaultyContext() as context:
        directory = TemporaryDirectory[str](dir=tmp_path, context=context)
        async with directory:
            with context.fail(errno.EIO, operation="change"), pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await directory.cleanup()
        assert os.listdir(tmp_path) == []


async def test_directory_whose_cleanup_failed_is_the_callers_when_it_is_dropped(tmp_path: Path) -> None:
    async with FaultyContext() as context:
        directory = await TemporaryDirectory(dir=tmp_path, context=context)
        with context.fail(errno.EIO, operation="change"), pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await directory.cleanup()
        del directory
        gc.collect()
        await trio_aio.os.listdir(tmp_path)
    assert len(os.listdir(tmp_path)) == 1


# ---- a working directory that is gone


async def test_absolute_folder_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    folder = tmp_path / "folder"
    for place in (str(folder), os.fsencode(folder)):
        os.close(tempfile.mkstemp(dir=place)[0])
        fd, path = await mkstemp(dir=place)
        os.close(fd)
        assert os.path.dirname(path) == place
        assert os.path.dirname(await mkdtemp(dir=place)) == place
        async with TemporaryFile(dir=place), NamedTemporaryFile(dir=place), TemporaryDirectory(dir=place):
            pass
        async with SpooledTemporaryFile(dir=place) as file:
            await file.rollover()
    with pytest.raises(FileNotFoundError):
        tempfile.mkdtemp(dir="relative")
    with pytest.raises(FileNotFoundError):
        await mkdtemp(dir="relative")


@on_asyncio
@pytest.mark.parametrize("name", ["mkstemp", "NamedTemporaryFile", "TemporaryFile", "open_directory"])
async def test_native_cancellation_while_a_file_is_opened_leaves_no_descriptor_to_the_collector(tmp_path: Path, name: str) -> None:
    gc.collect()
    gc.disable()
    try:
        async with FaultyContext() as context:
            await trio_aio.os.getcwd()
            arguments: dict[str, Any] = {"path": tmp_path} if name == "open_directory" else {"dir": tmp_path}

            async def call() -> None:
                await getattr(trio_aio, name)(**arguments, context=context)

            before = len(os.listdir("/proc/self/fd"))
            with context.hang(operation="open") as hang:
                await cancelled_natively(call, hang)
            while len(os.listdir("/proc/self/fd")) > before:
                await trio_aio.os.stat(tmp_path, context=context)
    finally:
        gc.enable()


async def test_absolute_folder_is_normalised_as_by_tempfile(tmp_path: Path) -> None:
    for folder in (f"{tmp_path}//", f"{tmp_path}/./", f"{tmp_path}/x/..", os.fsencode(f"{tmp_path}//")):
        for call in (mkdtemp, lambda **options: _second(mkstemp(**options))):
            made = await call(dir=folder)
            assert os.path.dirname(made) == (os.fsencode(tmp_path) if isinstance(made, bytes) else str(tmp_path))


async def _second(call: Awaitable[tuple[int, Any]]) -> Any:
    fd, path = await call
    os.close(fd)
    return path


AT_THE_END = """
import os, sys, threading, warnings
import trio, trio_aio

async def main():
    kept = []
    for i in range(3):
        kept.append(await trio_aio.TemporaryDirectory(dir=sys.argv[1]))
        for j in range(500):
            open(kept[i].name + f"/{j}", "w").close()
    if sys.argv[2] == "held":
        threading.Thread(target=lambda held: threading.Event().wait(), args=(kept,), daemon=True).start()

if sys.argv[2] == "dropped":
    warnings.simplefilter("ignore")
trio.run(main)
"""


@pytest.mark.parametrize("how", ["dropped", "held"])
def test_directories_are_removed_at_the_end_of_the_interpreter(tmp_path: Path, how: str) -> None:
    options = ["-W", "error::ResourceWarning"] if how == "held" else []
    done = subprocess.run(
        [sys.executable, *options, "-c", AT_THE_END, str(tmp_path), how], capture_output=True, text=True, check=False, timeout=60
    )
    assert os.listdir(tmp_path) == []
    assert ("unclosed" in done.stderr) == (how == "held")
