"""Temporary files and directories, compared with ``tempfile``."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import gc
import io
import os
import stat
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group

import trio_aio
from trio_aio import (
    AsyncFile,
    AsyncTextFile,
    NamedTemporaryFile,
    SpooledTemporaryFile,
    TemporaryDirectory,
    TemporaryFile,
    current_context,
    gettempdir,
    gettempdirb,
    mkdtemp,
    mkstemp,
    open_directory,
)
from trio_aio._lanes.threads import living

from ..support.programs import run
from ..support.trees import make_tree

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


async def test_temporary_file_has_no_name(filesystem: pathlib.Path) -> None:
    async with TemporaryFile(dir=str(filesystem)) as file:
        assert isinstance(file, AsyncFile)
        assert await file.write(b"data") == 4
        await file.seek(0)
        assert await file.read() == b"data"
        assert os.listdir(filesystem) == []
        assert stat.S_IMODE((await file.stat()).st_mode) == 0o600
        assert not os.get_inheritable(file.fileno())
        assert file.name == file.fileno()
    file = await TemporaryFile("w+", encoding="utf-8", dir=filesystem)
    assert isinstance(file, AsyncTextFile)
    assert await file.write("tëxt") == 4
    await file.aclose()


async def test_temporary_file_may_be_direct(disk: pathlib.Path) -> None:
    async with TemporaryFile(dir=disk, direct=True) as file:
        assert file.direct
        await file.pwrite(b"x" * 5000, 0)
        assert await file.pread(5000, 0) == b"x" * 5000


@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize("delete_on_close", [True, False])
async def test_named_file_is_removed_when_the_arguments_say_so(tmp_path: pathlib.Path, delete: bool, delete_on_close: bool) -> None:
    async with NamedTemporaryFile(
        "w+", suffix=".txt", prefix="a", dir=str(tmp_path), delete=delete, delete_on_close=delete_on_close
    ) as file:
        assert os.path.dirname(file.name) == str(tmp_path)
        assert os.path.basename(file.name).startswith("a")
        assert file.name.endswith(".txt")
        assert stat.S_IMODE(os.stat(file.name).st_mode) == 0o600
        await file.write("text")
        assert (tmp_path / file.name).read_text() == "text"
        await file.aclose()
        assert os.path.exists(file.name) != (delete and delete_on_close)
    assert os.path.exists(file.name) != delete


async def test_named_file_is_removed_in_a_cancelled_scope(tmp_path: pathlib.Path) -> None:
    with CancelScope() as scope:
        async with NamedTemporaryFile(dir=tmp_path) as file:
            assert os.listdir(tmp_path) == [os.path.basename(file.name)]
            scope.cancel()
    assert os.listdir(tmp_path) == []


async def test_names_have_the_type_of_the_arguments(tmp_path: pathlib.Path) -> None:
    for directory in (str(tmp_path), os.fsencode(tmp_path)):
        async with NamedTemporaryFile(dir=directory) as file:
            assert type(file.name) is type(directory)
        async with TemporaryDirectory(dir=directory) as name:
            assert type(name) is type(directory)
        fd, path = await mkstemp(dir=directory)
        os.close(fd)
        assert type(path) is type(directory)
        assert type(await mkdtemp(dir=directory)) is type(directory)
    with pytest.raises(TypeError, match="all be"):
        await mkstemp(prefix="a", dir=b"b")  # type: ignore[type-var]


async def test_mkstemp_and_mkdtemp_equal_tempfile(tmp_path: pathlib.Path) -> None:
    fd, path = await mkstemp(".s", "p", str(tmp_path))
    theirs_fd, theirs = tempfile.mkstemp(".s", "p", str(tmp_path))
    try:
        for each, descriptor in ((path, fd), (theirs, theirs_fd)):
            assert stat.S_IMODE(os.stat(each).st_mode) == 0o600
            assert not os.get_inheritable(descriptor)
            assert os.path.samestat(os.stat(each), os.fstat(descriptor))
            assert len(each) == len(theirs)
        os.write(fd, b"x")
    finally:
        os.close(fd)
        os.close(theirs_fd)
    directory = await mkdtemp(dir=str(tmp_path))
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    with pytest.raises(FileNotFoundError):
        await mkdtemp(dir=str(tmp_path / "absent"))


async def test_taken_names_are_tried_no_longer_than_tempfile_does(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TMP_MAX", 3)
    from trio_aio._names import temporary

    monkeypatch.setattr(temporary._random, "choices", lambda letters, k: ["taken"])
    first = await mkdtemp(dir=str(tmp_path))
    assert first.endswith("taken")
    with pytest.raises(FileExistsError):
        await mkdtemp(dir=str(tmp_path))


async def test_gettempdir_equals_tempfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert await gettempdir() == tempfile.gettempdir()
    assert await gettempdirb() == tempfile.gettempdirb()


async def test_directory_is_removed_with_all_that_is_in_it(tmp_path: pathlib.Path) -> None:
    async with TemporaryDirectory(prefix="x", dir=tmp_path) as name:
        assert os.path.isdir(name)
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o700
        (tmp_path / name / "tree").mkdir()
        make_tree(tmp_path / name / "tree")
    assert os.listdir(tmp_path) == []
    with CancelScope() as scope:
        async with TemporaryDirectory(dir=tmp_path) as name:
            (tmp_path / name / "tree").mkdir()
            make_tree(tmp_path / name / "tree")
            scope.cancel()
    assert os.listdir(tmp_path) == []
    directory = await TemporaryDirectory(dir=tmp_path)
    assert os.listdir(tmp_path) == [os.path.basename(directory.name)]
    await directory.cleanup()
    await directory.cleanup()
    assert os.listdir(tmp_path) == []
    async with TemporaryDirectory(dir=tmp_path, delete=False) as name:
        pass
    assert os.path.isdir(name)


async def test_temporary_file_is_made_by_one_request(filesystem: pathlib.Path) -> None:
    context = current_context()
    for kind in (TemporaryFile, NamedTemporaryFile):
        before = context.statistics().submitted_workers
        file = await kind(dir=str(filesystem))
        assert context.statistics().submitted_workers == before + 1
        assert await file.write(b"data") == 4
        await file.aclose()
    assert not os.listdir(filesystem)


@pytest.mark.parametrize("mode", ["w+b", "w+"])
@pytest.mark.parametrize("delete_on_close", [True, False])
async def test_named_file_that_is_dropped_is_removed_by_a_thread(tmp_path: pathlib.Path, mode: str, delete_on_close: bool) -> None:
    file = await NamedTemporaryFile(mode, dir=tmp_path, delete_on_close=delete_on_close)
    assert os.listdir(tmp_path) == [os.path.basename(file.name)]
    with pytest.warns(ResourceWarning, match="unclosed"):
        del file
    gc.collect()
    while os.listdir(tmp_path):
        await trio_aio.os.getcwd()


async def test_named_file_that_is_dropped_stays_without_delete(tmp_path: pathlib.Path) -> None:
    file = await NamedTemporaryFile(dir=tmp_path, delete=False)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del file
    gc.collect()
    await trio_aio.os.listdir(tmp_path)
    assert not [thread for thread in living if "temporary" in thread.name]
    assert len(os.listdir(tmp_path)) == 1


async def test_named_file_that_was_closed_and_is_dropped_is_removed_without_a_warning(tmp_path: pathlib.Path) -> None:
    file = await NamedTemporaryFile(dir=tmp_path, delete_on_close=False)
    await file.aclose()
    assert os.listdir(tmp_path)
    del file
    gc.collect()
    while os.listdir(tmp_path):
        await trio_aio.os.getcwd()


async def fail_inside(manager: Any, scope: CancelScope) -> None:
    async with manager:
        scope.cancel()
        raise KeyError


async def test_directory_is_removed_in_a_cancelled_scope_and_cancelled_is_raised(tmp_path: pathlib.Path) -> None:
    directory = await TemporaryDirectory(dir=tmp_path)
    with CancelScope() as scope:
        scope.cancel()
        await directory.cleanup()
    assert scope.cancelled_caught
    with CancelScope() as scope:
        async with TemporaryDirectory(dir=tmp_path):
            scope.cancel()
    assert scope.cancelled_caught
    with CancelScope() as scope, pytest.raises(KeyError):  # what the body raised leaves as it is
        await fail_inside(TemporaryDirectory(dir=tmp_path), scope)
    assert not os.listdir(tmp_path)


async def test_file_of_another_process_is_not_removed_by_a_child(tmp_path: pathlib.Path) -> None:
    directory = await TemporaryDirectory(dir=tmp_path)
    async with NamedTemporaryFile(dir=tmp_path) as file:
        child = os.fork()
        if not child:
            file._closed = True  # the warning is not wanted here
            del file
            directory.__del__()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
        assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(file.name), os.path.basename(directory.name)])
    await directory.cleanup()
    assert not os.listdir(tmp_path)


async def test_directory_that_is_dropped_is_removed_by_a_thread(tmp_path: pathlib.Path) -> None:
    directory = await TemporaryDirectory(dir=tmp_path)
    (tmp_path / directory.name / "file").write_text("")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del directory
    gc.collect()
    while os.listdir(tmp_path):
        await trio_aio.os.getcwd()


# ---- made once


async def used_by_two_tasks(made: Any, how: str) -> list[Any]:
    """Await or enter something in two tasks at once. Return what each got: a result, or the error that it raised."""
    results: list[Any] = []

    async def use() -> None:
        try:
            results.append(await made if how == "await" else await made.__aenter__())
        except RuntimeError as error:
            results.append(error)

    async with create_task_group() as tasks:
        tasks.start_soon(use)
        tasks.start_soon(use)
    return results


@pytest.mark.parametrize("how", ["await", "enter"])
@pytest.mark.parametrize("kind", [TemporaryFile, NamedTemporaryFile, TemporaryDirectory, open_directory, trio_aio.open_aio])
async def test_object_that_two_tasks_use_at_once_makes_one_thing(tmp_path: pathlib.Path, kind: Any, how: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    if kind is open_directory or kind is trio_aio.open_aio:
        made = kind(tmp_path / "folder") if kind is open_directory else kind(tmp_path / "file")
    else:
        made = kind(dir=tmp_path / "folder")
    results = await used_by_two_tasks(made, how)
    errors = [each for each in results if isinstance(each, RuntimeError)]
    assert len(errors) == 1
    assert "awaited or entered before" in str(errors[0])
    with pytest.raises(RuntimeError, match="awaited or entered before"):
        await used_by_one(made)
    if kind is TemporaryDirectory:
        await made.cleanup()
    else:
        (result,) = (each for each in results if each not in errors)
        await result.aclose()
    assert os.listdir(tmp_path / "folder") == []


async def used_by_one(made: Any) -> None:
    async with made:
        pass


async def test_spooled_file_may_be_entered_by_several_tasks_and_not_when_it_is_closed() -> None:
    file = SpooledTemporaryFile[bytes]()
    assert await used_by_two_tasks(file, "enter") == [file, file]
    await file.aclose()
    for make in (lambda: file, tempfile.SpooledTemporaryFile):
        with pytest.raises(ValueError, match="closed file"):
            await entered_closed(make())


async def entered_closed(file: Any) -> None:
    if isinstance(file, tempfile.SpooledTemporaryFile):
        file.close()
        with file:
            pass
    async with file:
        pass


# ---- the mode "a"


@pytest.mark.parametrize("kind", ["TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "in memory", "rolled over"])
async def test_mode_means_what_it_means_to_tempfile(tmp_path: pathlib.Path, kind: str) -> None:
    """No mode opens for appending: a write goes to the position, in memory as on disk."""
    for mode in ("a+b", "a+", "ab", "a", "x+b", "w+"):
        await compare_mode(tmp_path, kind, mode)


async def compare_mode(folder: pathlib.Path, kind: str, mode: str) -> None:
    name = kind if kind.endswith("File") else "SpooledTemporaryFile"
    arguments: dict[str, Any] = {"mode": mode, "dir": folder}
    if name == "SpooledTemporaryFile":
        arguments["max_size"] = 2 if kind == name else 0
    if "b" not in mode:
        arguments["encoding"] = "utf-8"

    def part(text: str) -> Any:
        return text.encode() if "b" in mode else text

    with getattr(tempfile, name)(**arguments) as theirs:
        async with getattr(trio_aio, name)(**arguments) as ours:
            for step, argument in (("write", part("abc")), ("seek", 1), ("write", part("X")), ("tell", None)):
                if kind == "rolled over" and step == "seek":
                    theirs.rollover()
                    await ours.rollover()
                arguments_of_step = [] if argument is None else [argument]
                wanted = getattr(theirs, step)(*arguments_of_step)
                assert await getattr(ours, step)(*arguments_of_step) == wanted
            theirs.flush()
            if kind == "in memory":
                assert not ours.rolled
                theirs.rollover()
                await ours.rollover()
                theirs.flush()
            assert os.pread(ours.fileno(), 10, 0) == os.pread(theirs.fileno(), 10, 0) == b"aXc"
            if hasattr(theirs, "readable"):  # Python 3.10 has none for spooled files
                assert (ours.readable(), ours.writable()) == (theirs.readable(), theirs.writable())


# ---- spooled


def steps(file: Any) -> list[Any]:
    """Return calls of a binary file with arguments."""
    return [
        ("write", b"first line\nsecond line\n"),
        ("tell",),
        ("seek", 3),
        ("read", 4),
        ("readline",),
        ("write", b"X" * 20),
        ("seek", -5, os.SEEK_END),
        ("read",),
        ("truncate", 12),
        ("seek", 0),
        ("readlines",),
        ("writelines", [b"a\n", b"b\n"]),
        ("seek", 0),
        ("read1", 5),
        ("read",),
    ]


@pytest.mark.parametrize("max_size", [0, 1, 30, 1000])
async def test_spooled_file_equals_tempfile(tmp_path: pathlib.Path, max_size: int) -> None:
    with tempfile.SpooledTemporaryFile(max_size, dir=tmp_path) as theirs:
        async with SpooledTemporaryFile[bytes](max_size, dir=str(tmp_path)) as ours:
            for name, *arguments in steps(theirs):
                if name == "read1" and not hasattr(theirs, "read1"):
                    name = "read"
                wanted = getattr(theirs, name)(*arguments)
                got = await getattr(ours, name)(*arguments)
                if name not in ("writelines", "truncate"):  # their results differ between Python's versions
                    assert got == wanted, name
                assert await ours.tell() == theirs.tell()
            # tempfile moves to disk when it is truncated, whatever a max_size of 0 says.
            assert ours.rolled == (theirs._rolled if max_size else False)
            assert os.listdir(tmp_path) == []
    assert ours.closed
    with pytest.raises(ValueError, match="closed"):
        await ours.read()


async def test_spooled_text_keeps_its_position_when_it_rolls_over(tmp_path: pathlib.Path) -> None:
    async with SpooledTemporaryFile[str](0, "w+", encoding="utf-8", newline="", dir=str(tmp_path)) as file:
        await file.write("ä line\nanother\n")
        await file.seek(0)
        assert await file.readline() == "ä line\n"
        with pytest.raises(io.UnsupportedOperation, match="rollover"):
            file.fileno()
        await file.rollover()
        await file.rollover()
        assert file.fileno() >= 0
        assert await file.readline() == "another\n"
        assert [line async for line in file] == []
    async with SpooledTemporaryFile[str](10, "w+", encoding="utf-8") as file:
        await file.write("0123456789")
        assert not file.rolled
        await file.write("x")
        assert file.rolled
        await file.seek(0)
        assert await file.read() == "0123456789x"


async def test_failed_rollover_changes_nothing(on_filesystem: Callable[[str], pathlib.Path]) -> None:
    small = on_filesystem("small_tmpfs")
    async with SpooledTemporaryFile[bytes](0, dir=str(small)) as file:
        await file.write(bytes(4 << 20))
        await file.seek(5)
        with pytest.raises(OSError, match="No space"):
            await file.rollover()
        assert not file.rolled
        assert await file.tell() == 5
        assert len(await file.read()) == (4 << 20) - 5


def test_classes_can_be_subscribed() -> None:
    for kind in (TemporaryFile, NamedTemporaryFile, SpooledTemporaryFile, TemporaryDirectory):
        assert kind[bytes] is not None


def test_what_is_left_at_the_end_of_the_interpreter_is_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").touch()
    (tmp_path / "folder").mkdir()
    program = """
    import trio_aio
    warnings.simplefilter("ignore")

    async def main():
        global file, directory
        file = await trio_aio.NamedTemporaryFile(dir=sys.argv[2])
        directory = await trio_aio.TemporaryDirectory(dir=sys.argv[2])

    trio.run(main)
    assert len(os.listdir(sys.argv[2])) == 2
    """
    run(program, tmp_path / "data", tmp_path / "folder")
    assert not os.listdir(tmp_path / "folder")
