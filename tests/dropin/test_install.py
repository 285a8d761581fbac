"""`install` and `uninstall`: our files in the places of trio's and anyio's own, and what was there put back."""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import pathlib
import subprocess
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import anyio
import anyio.streams.file
import pytest
import trio

import trio_aio
from trio_aio import AsyncFile, AsyncTextFile, install, uninstall

from ..support.files import make_file
from ..support.programs import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    before = trio.open_file, anyio.open_file
    yield
    uninstall()
    assert (trio.open_file, anyio.open_file) == before


@pytest.fixture
def importer() -> Iterator[types.ModuleType]:
    """Return a module that has imported the functions by name."""
    module = types.ModuleType("imports_open_file")
    exec("from anyio import open_file\nfrom trio import open_file as of_trio\nfrom anyio.streams.file import FileReadStream", vars(module))
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def library() -> Any:
    return trio if trio.lowlevel.in_trio_task() else anyio


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")
async def test_installed_open_file_opens_files_of_ours(tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    install()
    async with await library().open_file(path, "rb") as file:
        assert isinstance(file, AsyncFile)
        assert isinstance(file, anyio.AsyncFile)
        assert isinstance(file, trio._file_io.AsyncIOWrapper)
        assert await file.read() == data
    async with await library().Path(path).open(encoding="latin-1") as text:
        assert isinstance(text, AsyncTextFile)
        assert text.encoding == "latin-1"
    async with library().Path(path).open("rb") as file:
        assert isinstance(file, AsyncFile)
    uninstall()
    async with await library().open_file(path, "rb") as file:
        assert type(file) is (trio._file_io.AsyncIOWrapper if library() is trio else anyio.AsyncFile)


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("mode", ["w+b", "w+"])
async def test_installed_spooled_file_has_what_that_of_anyio_has(tmp_path: Path, mode: Any) -> None:
    theirs = anyio.SpooledTemporaryFile
    install(names=True)
    ours: Any = anyio.SpooledTemporaryFile
    assert ours is trio_aio.SpooledTemporaryFile
    encoding = None if "b" in mode else "utf-8"
    async with theirs(0, mode, encoding=encoding) as model, ours(0, mode, encoding=encoding, dir=str(tmp_path)) as file:
        assert isinstance(file, anyio.AsyncFile)
        assert isinstance(file, anyio.abc.AsyncResource)
        assert isinstance(file, trio.abc.AsyncResource)
        public = {name for name in dir(theirs) if not name.startswith("_")}
        assert sorted(name for name in public if not hasattr(file, name)) == []
        for name in ("encoding", "errors", "newlines", "line_buffering", "write_through"):  # of what is underneath
            assert getattr(file, name, "none") == getattr(model, name, "none")
        for name in ("readable", "writable", "seekable", "isatty"):
            assert getattr(file, name)() == getattr(model, name)()  # type: ignore[operator]
        assert type(file.wrapped) is type(model.wrapped)


@pytest.mark.parametrize("function", [lambda: trio.open_file, lambda: anyio.open_file, lambda: trio.Path.open, lambda: anyio.Path.open])
def test_replacement_has_signature_name_and_text_of_the_replaced(function: Callable[[], Any]) -> None:
    def facts() -> Any:
        now = function()
        return inspect.signature(now), now.__name__, now.__qualname__, now.__doc__, now.__module__

    before = facts()
    install()
    assert facts() == before


def test_open_file_of_trio_refuses_a_limiter(tmp_path: Path) -> None:
    install()
    with pytest.raises(TypeError, match="limiter"):
        trio.open_file(tmp_path / "file", limiter=None)  # type: ignore[call-overload]  # noqa: ASYNC105


@pytest.mark.parametrize("part", ["trio", "anyio"])
def test_one_library_alone_can_be_replaced(part: str) -> None:
    before = {"trio": trio.open_file, "anyio": anyio.open_file}
    install(**{part: False})
    assert {name for name, module in (("trio", trio), ("anyio", anyio)) if module.open_file is before[name]} == {part}


def everything() -> dict[tuple[int, str], Any]:
    """Return the attributes of all modules and classes in which something is replaced."""
    private = map(importlib.import_module, ("trio._file_io", "anyio._core._fileio", "anyio._core._tempfile", "anyio.streams.file"))
    owners: list[Any] = [trio, anyio, trio.Path, anyio.Path, *private]
    return {(number, name): value for number, owner in enumerate(owners) for name, value in vars(owner).items()}


def test_uninstall_puts_back_what_was_there() -> None:
    # What newer versions of anyio look up late is looked up now.
    _ = (anyio.open_file, [getattr(anyio, name) for name in trio_aio._names.temporary.__all__], anyio.SpooledTemporaryFile)  # type: ignore[attr-defined]
    before = everything()
    install(streams=True, whole=True, names=True)
    changed = {key for key, value in everything().items() if value is not before.get(key)}
    assert len(changed) > 60
    uninstall()
    now = everything()
    assert now.keys() == before.keys()
    assert not [key for key in now if now[key] is not before[key]]


def test_second_install_and_uninstall_have_no_effect() -> None:
    uninstall()
    before = anyio.open_file
    install()
    installed = anyio.open_file
    install(names=True)
    assert anyio.open_file is installed
    uninstall()
    uninstall()
    assert anyio.open_file is before


def test_modules_that_have_imported_the_function_get_ours_and_lose_it(importer: Any) -> None:
    before = vars(importer).copy()
    install(streams=True)
    assert importer.open_file is anyio.open_file is not before["open_file"]
    assert importer.of_trio is trio.open_file is not before["of_trio"]
    assert importer.FileReadStream is trio_aio.FileReadStream
    importer.imported_later = anyio.open_file
    uninstall()
    assert {name: vars(importer)[name] for name in before} == before
    assert importer.imported_later is before["open_file"]


def test_module_that_uses_this_package_itself_keeps_it(importer: Any) -> None:
    for name in trio_aio.__all__:
        setattr(importer, f"ours_{name}", getattr(trio_aio, name))
    install(streams=True, whole=True, names=True)
    uninstall()
    assert [name for name in trio_aio.__all__ if getattr(importer, f"ours_{name}") is not getattr(trio_aio, name)] == []


def test_patch_over_ours_is_left_with_a_warning() -> None:
    def patch() -> None:
        pass

    before = anyio.open_file
    install()
    try:
        anyio.open_file = patch  # type: ignore[assignment]
        with pytest.warns(RuntimeWarning, match=r"anyio\.open_file"):
            uninstall()
        assert anyio.open_file is patch  # type: ignore[comparison-overlap]
    finally:
        anyio.open_file = before


def test_built_in_open_is_not_touched() -> None:
    before = builtins.open, io.open, pathlib.Path.open
    install(streams=True, whole=True, names=True)
    assert (builtins.open, io.open, pathlib.Path.open) == before


def test_install_and_uninstall_in_several_threads_leave_the_originals() -> None:
    before = trio.open_file, anyio.open_file, vars(trio.Path)["open"], vars(anyio.Path)["open"]

    def toggle() -> None:
        for _ in range(8):
            install()
            uninstall()

    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (trio.open_file, anyio.open_file, vars(trio.Path)["open"], vars(anyio.Path)["open"]) == before


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_other_kinds_of_file_stay_those_of_the_library(tmp_path: Path) -> None:
    install()
    kind = trio._file_io.AsyncIOWrapper if library() is trio else anyio.AsyncFile
    for opening in (library().open_file("/dev/zero", "rb", 0), library().Path("/dev/zero").open("rb", 0)):
        async with await opening as file:
            assert type(file) is kind
            assert await file.read(2) == b"\0\0"


@pytest.mark.anyio
@pytest.mark.backends("asyncio")
async def test_limiter_of_an_anyio_path_is_the_files(tmp_path: Path) -> None:
    path, _ = make_file(tmp_path)
    limiter = anyio.CapacityLimiter(1)
    install()
    for name in (path, "/dev/null"):
        async with await anyio.Path(name, limiter=limiter).open("rb") as file:
            assert file.limiter is limiter


# ---- options


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_whole_reads_and_writes_by_requests_of_ours(tmp_path: Path) -> None:
    install(whole=True)
    path = library().Path(tmp_path / "file")
    counted = trio_aio.current_context().statistics().completed
    assert await path.write_bytes(b"data") == 4
    assert await path.read_bytes() == b"data"
    assert await path.write_text("täxt", "latin-1") == 4
    assert await path.read_text("latin-1") == "täxt"
    assert trio_aio.current_context().statistics().completed >= counted + 4
    # What we do not read is read by the library.
    assert await library().Path("/dev/null").read_bytes() == b""


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_names_return_paths_of_their_own_class(tmp_path: Path) -> None:
    install(names=True)
    kind = library().Path

    class Own(kind):  # type: ignore[misc]
        pass

    # trio's class has none of its own before Python 3.12.
    for cls in (kind, Own) if library() is anyio else (kind,):
        folder = cls(tmp_path / cls.__name__)
        await folder.mkdir()
        await (folder / "a").touch()
        assert await (folder / "a").exists()
        assert (await (folder / "a").stat()).st_size == 0
        listed = [path async for path in folder.iterdir()] if library() is anyio else list(await folder.iterdir())
        assert [(type(path), path.name) for path in listed] == [(type(folder), "a")]
        found = [path async for path in folder.glob("*")] if library() is anyio else list(await folder.glob("*"))
        assert found == listed
        moved = await (folder / "a").rename(folder / "b")
        assert (type(moved), moved.name) == (type(folder), "b")
        assert type(await cls.cwd()) is type(folder)
        assert type(await folder.resolve()) is type(folder)
        await moved.unlink()
        with pytest.raises(FileNotFoundError):
            await moved.stat()


@pytest.mark.anyio
@pytest.mark.backends("asyncio")
async def test_paths_of_a_listing_keep_the_limiter(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    limiter = anyio.CapacityLimiter(1)
    install(names=True)
    folder = anyio.Path(tmp_path, limiter=limiter)
    assert [path.limiter async for path in folder.iterdir()] == [limiter]
    assert (await folder.resolve()).limiter is limiter


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_names_replace_temporary_files_of_anyio() -> None:
    install(names=True)
    async with anyio.NamedTemporaryFile() as file:
        assert isinstance(file, AsyncFile)
        await file.write(b"data")
    async with anyio.TemporaryDirectory() as folder:
        assert pathlib.Path(folder).is_dir()  # noqa: ASYNC240


# ---- python -m trio_aio run

PROGRAM = """
import sys
import anyio

async def main():
    async with await anyio.open_file(__file__, "rb") as file:
        print(type(file).__module__.partition(".")[0], __name__, *sys.argv[1:])

anyio.run(main)
"""


def test_run_runs_a_script_with_its_arguments(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    output = check([sys.executable, "-X", "dev", "-m", "trio_aio", "run", str(script), "-m", "--json", "x"])
    assert output == "trio_aio __main__ -m --json x\n"


def test_run_runs_a_module(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "trio_aio", "run", "-m", "program", "-v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "trio_aio __main__ -v\n"


def test_run_exits_with_the_status_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("raise SystemExit(7)")
    done = subprocess.run([sys.executable, "-m", "trio_aio", "run", str(tmp_path / "program.py")], check=False)
    assert done.returncode == 7


def test_import_loads_neither_trio_nor_asyncio() -> None:
    check([sys.executable, "-c", "import trio_aio, sys; assert not {'trio', 'asyncio'} & sys.modules.keys()"])
