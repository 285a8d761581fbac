"""What is made in one run belongs to that run: another run, another thread, and a child of fork are refused, and nothing happens."""

# Some calls here block, and that is fine.

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint

from trio_aio import (
    AIOContext,
    AsyncDirectory,
    Path,
    SpooledTemporaryFile,
    current_context,
    open_directory,
    read_files,
    scandir,
    walk,
)

from ..support.programs import run

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/file").write_bytes(b"x")
    return tmp_path


def names(folders: pathlib.Path) -> tuple[list[str], list[str]]:
    return os.listdir(folders / "a"), os.listdir(folders / "b")


async def opened(path: pathlib.Path) -> AsyncDirectory:
    return await open_directory(path)


# ---- a second directory


async def refuse_as_target(folders: pathlib.Path, other: Any, error: type[Exception], match: str) -> None:
    before = names(folders)
    async with open_directory(folders / "a") as directory:
        for call in (directory.rename, directory.link):
            with pytest.raises(error, match=match):
                await call("file", "new", to=other)
    assert names(folders) == before


async def test_target_directory_of_another_thread_is_refused(folders: pathlib.Path) -> None:
    with start_blocking_portal() as portal:
        other = portal.call(opened, folders / "b")
        try:
            await refuse_as_target(folders, other, RuntimeError, "another thread")
        finally:
            portal.call(other.aclose)


async def test_target_directory_of_an_ended_run_is_refused(folders: pathlib.Path) -> None:
    with start_blocking_portal() as portal:
        other = portal.call(opened, folders / "b")
    await refuse_as_target(folders, other, RuntimeError, "closed")
    await other.aclose()
    await refuse_as_target(folders, other, ValueError, "closed directory")


async def test_target_directory_of_another_context_of_the_same_run_is_taken(folders: pathlib.Path) -> None:
    async with AIOContext() as context, open_directory(folders / "b", context=context) as other:
        async with open_directory(folders / "a") as directory:
            await directory.link("file", "linked", to=other)
            await directory.rename("file", "renamed", to=other)
        assert sorted(await other.listdir()) == ["linked", "renamed"]


@pytest.mark.parametrize("other", ["b", 3])
async def test_target_directory_must_be_a_directory_of_ours(folders: pathlib.Path, other: Any) -> None:
    await refuse_as_target(folders, other, TypeError, f"AsyncDirectory, not {type(other).__name__}")


async def test_directory_of_another_thread_is_refused(folders: pathlib.Path) -> None:
    with start_blocking_portal() as portal:
        other = portal.call(opened, folders / "a")
        try:
            before = names(folders)
            for call in calls_of(other):
                with pytest.raises(RuntimeError, match="another thread"):
                    await call()
            assert names(folders) == before
        finally:
            portal.call(other.aclose)


def calls_of(directory: AsyncDirectory) -> list[Callable[[], Any]]:
    """Return a call of every kind."""

    async def listed() -> None:
        async for _ in directory.scandir():
            pass

    async def entered() -> None:
        async with directory.open_directory("."):
            pass

    return [
        lambda: directory.stat("file"),
        lambda: directory.exists("file"),
        lambda: directory.readlink("file"),
        lambda: directory.open("file"),
        lambda: directory.read_bytes("file"),
        lambda: directory.read_bytes("file", into=bytearray(3)),
        lambda: directory.read_text("file"),
        lambda: directory.write_bytes("new", b""),
        lambda: directory.write_text("new", ""),
        lambda: directory.listdir(),
        lambda: directory.scandir(),
        lambda: directory.walk(),
        listed,
        lambda: directory.mkdir("new"),
        lambda: directory.unlink("file"),
        lambda: directory.unlink("file", missing_ok=True),
        lambda: directory.rmdir("new"),
        lambda: directory.rename("file", "new"),
        lambda: directory.link("file", "new"),
        lambda: directory.symlink("file", "new"),
        lambda: directory.chmod("file", 0o600),
        lambda: directory.utime("file"),
        lambda: directory.remove_tree("file"),
        lambda: directory.open_directory("."),
        entered,
        lambda: directory.sync(),
        lambda: directory.aclose(),
    ]


# ---- listings


@pytest.mark.parametrize("kind", [walk, lambda folders: Path(folders).glob("**/*"), lambda folders: Path(folders).walk()])
async def test_run_ends_although_another_thread_has_tried_to_read_its_tree(tmp_path: pathlib.Path, kind: Callable[[Any], Any]) -> None:
    for number in range(30):
        (tmp_path / f"folder {number}/inner").mkdir(parents=True)

    async def begun() -> Any:
        listing = kind(tmp_path)
        await listing.__anext__()
        return listing

    async def abandoned(listing: Any) -> int:
        """Return how many requests the engine believes to be abandoned when none is left. It is set to 0, so that a failed test ends."""
        await listing.aclose()
        engine = current_context()._core.engine
        assert engine is not None
        while engine.drops or engine.outstanding:
            await checkpoint()
        found, engine.abandoned = engine.abandoned, 0
        return found

    async def take_all(listing: Any) -> None:
        async for _ in listing:
            pass

    with start_blocking_portal() as portal:
        listing = portal.call(begun)
        with pytest.raises(RuntimeError, match="another thread"):
            await take_all(listing)
        left = portal.call(abandoned, listing)
    assert not left


LISTINGS: dict[str, Callable[[pathlib.Path], Any]] = {
    "scandir": scandir,
    "walk": walk,
    "glob": lambda folder: Path(folder).glob("*"),
    "read_files": lambda folder: read_files([folder / "1", folder / "2"]),
}


@pytest.mark.parametrize("kind", LISTINGS)
async def test_listing_that_another_thread_has_tried_to_use_is_as_before(tmp_path: pathlib.Path, kind: str) -> None:
    for name in ("1", "2"):
        (tmp_path / name).write_text(name)
    if kind == "walk":
        (tmp_path / "folder").mkdir()

    async def begun() -> Any:
        listing = LISTINGS[kind](tmp_path)
        await listing.__anext__()
        return listing

    async def rest(listing: Any) -> int:
        return sum([1 async for _ in listing])

    async def listed(listing: Any) -> Any:
        return await listing

    with start_blocking_portal() as portal:
        listing = portal.call(begun)
        for use in (partial(listed, listing), listing.aclose):
            with pytest.raises(RuntimeError, match="another thread"):
                await use()
        assert portal.call(rest, listing) == 1


# ---- a spooled file, which has no descriptor while it is in memory


async def written(*, rolled: bool) -> SpooledTemporaryFile[bytes]:
    file = SpooledTemporaryFile[bytes]()
    await file.write(b"ab")
    if rolled:
        await file.rollover()
    return file


@pytest.mark.parametrize("rolled", [False, True])
async def test_spooled_file_of_another_thread_is_refused(rolled: bool) -> None:
    with start_blocking_portal() as portal:
        file = portal.call(partial(written, rolled=rolled))
        calls: list[Callable[[], Any]] = [
            lambda: file.__aenter__(),
            lambda: file.read(),
            lambda: file.write(b"c"),
            lambda: file.seek(0),
            lambda: file.truncate(),
            lambda: file.flush(),
            lambda: file.rollover(),
            lambda: file.aclose(),
            lambda: file.__aexit__(None, None, None),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="another thread"):
                await call()
        assert (file.closed, file.rolled) == (False, rolled)
        portal.call(file.seek, 0)
        assert portal.call(file.read) == b"ab"
        portal.call(file.aclose)


@pytest.mark.parametrize("rolled", [False, True])
async def test_spooled_file_of_an_ended_run_is_refused_and_can_be_closed(rolled: bool) -> None:
    with start_blocking_portal() as portal:
        file = portal.call(partial(written, rolled=rolled))
    for call in (file.read, file.tell, file.rollover):
        with pytest.raises(RuntimeError, match="closed"):
            await call()
    await file.aclose()
    assert file.closed
    with pytest.raises(ValueError, match="closed file"):
        await file.__aenter__()


async def test_spooled_file_that_no_call_has_used_belongs_to_no_run() -> None:
    with start_blocking_portal():
        file = SpooledTemporaryFile[bytes]()
    await file.write(b"ab")
    await file.aclose()
    await SpooledTemporaryFile[bytes]().aclose()


# ---- a child of fork

FORKED = """
import trio_aio
warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
folder = sys.argv[2]
os.chdir(folder)

def calls(directory, spooled, temporary, context):
    listings = [
        lambda: directory.scandir(), lambda: directory.walk(),
        lambda: trio_aio.read_files(["file"], context=context), lambda: trio_aio.scandir(context=context),
        lambda: trio_aio.walk(".", context=context),
    ]
    of_directory = [
        lambda: directory.stat("file"), lambda: directory.exists("file"), lambda: directory.readlink("file"),
        lambda: directory.open("file"), lambda: directory.read_bytes("file"), lambda: directory.read_bytes("file", into=bytearray(1)),
        lambda: directory.read_text("file"), lambda: directory.write_bytes("file", b""), lambda: directory.write_text("file", ""),
        lambda: directory.listdir(), lambda: directory.mkdir("new"), lambda: directory.unlink("file"),
        lambda: directory.unlink("file", missing_ok=True), lambda: directory.rmdir("new"), lambda: directory.rename("file", "new"),
        lambda: directory.link("file", "new"), lambda: directory.symlink("file", "new"), lambda: directory.chmod("file", 0o600),
        lambda: directory.utime("file"), lambda: directory.remove_tree("file"), lambda: directory.open_directory("."),
        lambda: directory.sync(), lambda: directory.aclose(),
    ]
    of_temporary = [
        lambda: temporary.cleanup(), lambda: temporary.__aexit__(None, None, None),
        lambda: spooled.write(b"x"), lambda: spooled.read(), lambda: spooled.tell(), lambda: spooled.flush(), lambda: spooled.rollover(),
        lambda: spooled.truncate(0), lambda: spooled.__aenter__(), lambda: spooled.__aexit__(None, None, None), lambda: spooled.aclose(),
    ]
    with_context = [
        lambda: trio_aio.read_bytes("file", context=context), lambda: trio_aio.read_bytes("file", into=bytearray(1), context=context),
        lambda: trio_aio.read_bytes("file", size=1, context=context), lambda: trio_aio.read_text("file", context=context),
        lambda: trio_aio.write_bytes("file", b"", context=context), lambda: trio_aio.write_bytes("file", b"", atomic=True, context=context),
        lambda: trio_aio.write_text("file", "", context=context), lambda: trio_aio.copy_file("file", "new", context=context),
        lambda: trio_aio.copy_tree("absent", "new", context=context), lambda: trio_aio.remove_tree("absent", context=context),
        lambda: trio_aio.mkstemp(context=context), lambda: trio_aio.mkdtemp(context=context),
        lambda: trio_aio.gettempdir(context=context), lambda: trio_aio.gettempdirb(context=context),
        lambda: trio_aio.TemporaryFile(context=context), lambda: trio_aio.NamedTemporaryFile(context=context),
        lambda: trio_aio.TemporaryDirectory(context=context), lambda: trio_aio.SpooledTemporaryFile(context=context),
        lambda: trio_aio.SpooledTemporaryFile(context=context).write(b""), lambda: trio_aio.open_directory(".", context=context),
        lambda: trio_aio.open_aio("file", context=context), lambda: trio_aio.open_file("file", context=context),
        lambda: trio_aio.os.statvfs("file", context=context), lambda: trio_aio.os.listdir(".", context=context),
        lambda: trio_aio.os.access("file", 0, context=context), lambda: trio_aio.os.readlink("file", context=context),
        lambda: trio_aio.os.truncate("file", 0, context=context), lambda: trio_aio.os.setxattr("file", "user.x", b"", context=context),
        lambda: trio_aio.os.getxattr("file", "user.x", context=context), lambda: trio_aio.os.getcwd(context=context),
        lambda: trio_aio.os.path.exists("file", context=context), lambda: trio_aio.os.path.realpath("file", context=context),
        lambda: trio_aio.os.path.abspath("file", context=context), lambda: trio_aio.os.sync_directory(".", context=context),
        lambda: trio_aio.os.chmod("file", 0o600, context=context),
        lambda: trio_aio.FileReadStream.from_path("file", context=context),
        lambda: trio_aio.FileWriteStream.from_path("file", context=context),
    ]
    return [*listings, *of_directory, *of_temporary, *with_context]

async def awaited(call):
    return await call()

def refused(run, made):
    for number, call in enumerate(calls(*made)):
        try:
            run(call)
        except RuntimeError as error:
            assert "parent process" in str(error), (number, error)
        else:
            raise AssertionError(f"call {number} was not refused")

def by_hand(call):
    awaited(call).send(None)

def in_a_run_of_its_own(made):
    failed = []
    def run():
        try:
            refused(lambda call: trio.run(awaited, call), made)
        except BaseException as error:
            failed.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

async def main():
    context = current_context()
    async with trio_aio.open_directory(".") as directory, trio_aio.SpooledTemporaryFile() as spooled:
        temporary = await trio_aio.TemporaryDirectory(dir=folder)
        await spooled.write(b"memory")
        made = directory, spooled, temporary, context
        before = sorted(os.listdir("."))
        pid = os.fork()
        if not pid:
            try:
                in_child(made)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert sorted(os.listdir(".")) == before
        assert await directory.read_bytes("file") == b"x"
        await spooled.seek(0)
        assert await spooled.read() == b"memory"
        await temporary.cleanup()
"""


@pytest.mark.parametrize("child", ["inside the run of the parent", "in a run of its own"])
def test_calls_in_a_child_of_fork_are_refused(tmp_path: pathlib.Path, child: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    (tmp_path / "data").touch()
    how = "lambda made: refused(by_hand, made)" if child == "inside the run of the parent" else "in_a_run_of_its_own"
    run(FORKED + f"in_child = {how}\ntrio.run(main)\n", tmp_path / "data", tmp_path / "folder")


# ---- a context that was not entered


@pytest.mark.parametrize("state", ["not open", "closed"])
async def test_listing_with_a_context_that_is_not_open_is_refused(folders: pathlib.Path, state: str) -> None:
    context = AIOContext()
    if state == "closed":
        async with context:
            pass
    calls: list[Callable[[], Any]] = [
        lambda: read_files([folders / "a/file"], context=context),
        lambda: scandir(folders, context=context),
        lambda: walk(folders, context=context),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=state):
            await call()
        with pytest.raises(RuntimeError, match=state):
            async for _ in call():
                pass
