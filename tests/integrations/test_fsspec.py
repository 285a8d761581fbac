"""`AioFileSystem`: what fsspec's suites leave out. The model is `LocalFileSystem`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import fsspec
import pytest
from fsspec.asyn import AbstractAsyncStreamedFile, AsyncFileSystem, async_methods
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

import trio_aio
from trio_aio.integrations import fsspec as integration
from trio_aio.integrations.batches import DEPTH
from trio_aio.integrations.fsspec import AioFileSystem

from ..support.files import content, opened_paths
from ..support.programs import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
SIZE = 300_000
# What asyncio says in dev mode where the machine is busy.
SLOW = r"Executing <.*> took .* seconds\n"
LIMITS = (None, 0, 7, 4096, SIZE - 5, SIZE, SIZE + 10, 1 << 40, -1, -4096, -SIZE, -SIZE - 10)


@pytest.fixture
def fs(fsspec_loop: object) -> AioFileSystem:
    return AioFileSystem()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Return paths of files, with their contents: empty, small, and of some pages."""
    made = {}
    for index, size in enumerate((0, 10, 4096, SIZE)):
        path = tmp_path / f"file{index}"
        made[str(path)] = content(size, seed=index)
        path.write_bytes(made[str(path)])
    return made


def threads_of_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Note in which threads a function of `trio_aio` is called."""
    used = []
    original: Callable[..., Any] = getattr(trio_aio, name)

    def noting(*args: Any, **options: Any) -> Any:
        used.append(threading.get_ident())
        return original(*args, **options)

    monkeypatch.setattr(trio_aio, name, noting)
    return used


# ---- reading


def test_cat_of_many_files_is_one_read_files_on_the_loop(
    fs: AioFileSystem, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = threads_of_calls(monkeypatch, "read_files")
    assert fs.cat([*files]) == files
    assert len(used) == 1
    assert used != [threading.get_ident()]


def test_calls_of_one_file_do_not_go_to_the_loop(fs: AioFileSystem, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError("went to the loop")

    monkeypatch.setattr(integration, "sync", refused)
    path, data = list(files.items())[-1]
    assert fs.cat_file(path, 5, -5) == data[5:-5]
    assert fs.cat(path) == fs.cat([path])[path] == data
    assert fs.cat_ranges([path], [5], [9], max_gap=1) == [data[5:9]]
    assert fs.info(path)["size"] == fs.size(path) == SIZE
    assert fs.exists(path)
    assert fs.find(os.path.dirname(path)) == sorted(files)
    with fs.open(path) as file:
        assert file.read() == data
    fs.pipe(path, b"new")
    fs.copy(path, path + "2")
    fs.get(path, path + "3")
    fs.put(path, path + "4")
    assert {fs.cat(path + end) for end in "234"} == {b"new"}
    fs.rm(path)
    assert not fs.exists(path)


@pytest.mark.parametrize("on_error", ["raise", "omit", "return"])
def test_cat_of_a_missing_file_is_as_local(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path, on_error: str) -> None:
    paths = [*files, str(tmp_path / "missing"), str(tmp_path)]

    def outcome(system: LocalFileSystem) -> Any:
        try:
            found = system.cat(paths, on_error=on_error)
        except OSError as error:
            return type(error), error.filename
        return {path: type(data) if isinstance(data, Exception) else data for path, data in found.items()}

    assert outcome(fs) == outcome(LocalFileSystem())


def test_cat_reads_a_device_as_local(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    assert fs.cat([*files, "/dev/null"]) == {**files, "/dev/null": b""}


@pytest.mark.parametrize("max_gap", [None, 0, 10_000])
def test_cat_ranges_returns_slices(fs: AioFileSystem, files: dict[str, bytes], max_gap: int | None) -> None:
    wanted = [(path, start, end) for path in files for start in LIMITS for end in LIMITS]
    paths, starts, ends = (list(column) for column in zip(*wanted, strict=True))
    assert fs.cat_ranges(paths, starts, ends, max_gap=max_gap) == [files[path][start:end] for path, start, end in wanted]


def test_cat_ranges_takes_numbers_for_all(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    assert fs.cat_ranges([*files], 3, 8) == [data[3:8] for data in files.values()]
    assert fs.cat_ranges([*files], -3, None) == [data[-3:] for data in files.values()]


def test_cat_ranges_opens_a_file_once(fs: AioFileSystem, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threads_of_calls(monkeypatch, "open_aio")
    path, data = list(files.items())[-1]
    assert fs.cat_ranges([path] * 50, list(range(50)), 100) == [data[start:100] for start in range(50)]
    assert len(opened) == 1


def test_cat_ranges_returns_or_raises_errors(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path) -> None:
    path, data = list(files.items())[-1]
    missing = str(tmp_path / "missing")
    found = fs.cat_ranges([path, missing, path, missing], [0, 0, 5, None], [5, 5, 9, None])
    assert [found[0], found[2]] == [data[:5], data[5:9]]
    assert [type(found[1]), type(found[3])] == [FileNotFoundError] * 2
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([path, missing], 0, 5, on_error="raise")
    with pytest.raises(TypeError, match="must be a list"):
        fs.cat_ranges(path, 0, 5)
    with pytest.raises(ValueError, match="starts must have one number for each of the 2 paths, not 1"):
        fs.cat_ranges([path, path], [0], 5)


def outcomes(found: Iterable[Any]) -> list[Any]:
    """Return results with the class of each error in its place."""
    return [type(part) if isinstance(part, Exception) else part for part in found]


def test_path_that_no_file_can_have_fails_alone(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    paths = [*files, "/null\0byte", "/lone\ud800surrogate"]
    expected = [*files.values(), ValueError, UnicodeEncodeError]
    found = fs.cat(paths, on_error="return")
    assert outcomes(found[path] for path in paths) == expected
    assert outcomes(fs.cat_ranges(paths, None, None)) == expected
    assert fs.cat(paths, on_error="omit") == files
    with pytest.raises(ValueError, match="surrogates not allowed"):  # the first: `cat` sorts
        fs.cat(paths)


@pytest.mark.parametrize("start", [1.5, "1", b"1", object()])
def test_range_that_is_none_fails_alone(fs: AioFileSystem, files: dict[str, bytes], start: Any) -> None:
    path, data = list(files.items())[-1]
    for far in (5, 1 << 30):
        assert outcomes(fs.cat_ranges([path] * 4, [0, start, 5, 0], [5, 9, 9, start])) == [data[:5], TypeError, data[5:9], TypeError]
        assert outcomes(fs.cat_ranges([path] * 3, [0, start, 5], [5, far, far])) == [data[:5], TypeError, data[5:far]]


PATHS = ("/", "//", "/a/", "/a//b//", "//a", "a", "./a", "../a/", "~", "", "aio:///a/", "file:///a", "local:/a", "/aio://a")


@pytest.mark.parametrize("path", [*PATHS, Path("/a/b"), Path("c")])
def test_path_is_stripped_as_local(path: Any) -> None:
    plain = str(path).replace("aio://", "file://") if str(path).startswith("aio:") else path
    assert AioFileSystem._strip_protocol(path) == LocalFileSystem._strip_protocol(plain)


def test_url_does_not_depend_on_fsspecs_own_protocols(fs: AioFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_a_file(name: Any) -> str:
        return f"file://{name}"

    # Older versions know only these.
    monkeypatch.setattr(LocalFileSystem, "protocol", ("file", "local"))
    monkeypatch.setattr(LocalFileSystem, "_strip_protocol", LocalFileSystem._strip_protocol)
    monkeypatch.setattr(LocalFileSystem, "unstrip_protocol", of_a_file)
    assert AioFileSystem._strip_protocol("aio:///a/") == AioFileSystem._strip_protocol("aio:/a") == "/a"
    assert fs.unstrip_protocol("/x") == fs.unstrip_protocol("file:///x") == "aio:///x"


def test_range_far_beyond_any_file_has_no_bytes(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    path, data = list(files.items())[-1]
    far = [1 << 62, 1 << 63, 1 << 65]
    assert fs.cat_ranges([path] * 4, [*far, 5], [far[-1] + 1, None, far[-1] + 9, 9]) == [b"", b"", b"", data[5:9]]
    assert fs.cat_ranges([*files], [*far, 0], [far[-1] + 1] * 4) == [b"", b"", b"", data]


def test_ranges_of_a_device_are_as_local(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    paths = ["/dev/zero", *files, "/dev/zero", "/dev/null"]
    assert fs.cat_ranges(paths, 0, 5) == LocalFileSystem().cat_ranges(paths, 0, 5)
    assert fs.cat_ranges(["/dev/null", *files], None, None) == [b"", *files.values()]


def test_descriptors_of_many_files_are_at_most_the_depth(fs: AioFileSystem, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}") for i in range(500)]
    for path in paths:
        Path(path).write_bytes(b"0123456789")
    most, opened, original = 0, 0, trio_aio.open_aio

    class Counting:
        def __init__(self, path: str) -> None:
            self.opener = original(path)

        async def __aenter__(self) -> Any:
            nonlocal most, opened
            opened += 1
            most = max(most, opened)
            return await self.opener.__aenter__()

        async def __aexit__(self, *exception: Any) -> None:
            nonlocal opened
            await self.opener.__aexit__(*exception)
            opened -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio_aio, "open_aio", Counting)
        assert fs.cat_ranges(paths + paths, 2, 5) == [b"234"] * 1000
    assert 1 < most <= DEPTH


# ---- writing, copying, removing


def test_pipe_of_many_writes_each(fs: AioFileSystem, tmp_path: Path) -> None:
    values = {str(tmp_path / f"{i}"): content(i * 100) for i in range(100)}
    fs.pipe(values)
    assert fs.cat([*values]) == values
    with pytest.raises(FileExistsError):
        fs.pipe(values, mode="create")


def test_value_of_a_path_that_is_named_twice_is_the_last(fs: AioFileSystem, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    for _ in range(20):
        fs.pipe({f"file://{path}": content(100_000), path: b"last", f"{path}2": b"other"})
        assert fs.cat([path, f"{path}2"]) == {path: b"last", f"{path}2": b"other"}


def test_pipe_of_many_in_a_transaction_waits_for_its_end(fs: AioFileSystem, tmp_path: Path) -> None:
    values = {str(tmp_path / name): b"data" for name in "ab"}
    with contextlib.suppress(ZeroDivisionError), fs.transaction:
        fs.pipe(values)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with fs.transaction:
        fs.pipe(values)
        assert not list(tmp_path.iterdir())
    assert fs.cat([*values]) == values


@pytest.mark.parametrize("mode", ["ab", "a", "a+b", "xb", "x", "x+b"])
@pytest.mark.parametrize("fails", [False, True])
def test_transaction_refuses_what_cannot_be_put_off_and_keeps_the_rest(fs: AioFileSystem, tmp_path: Path, mode: str, fails: bool) -> None:
    first, log, last = (str(tmp_path / name) for name in ("first", "log", "last"))
    if "a" in mode:
        Path(log).write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with contextlib.suppress(ZeroDivisionError), fs.transaction:
        for path in (first, last):
            with pytest.raises(NotImplementedError, match=r"log: what is written with mode '[ax]"):
                fs.open(log, mode)
            with fs.open(path, "wb") as file:
                file.write(b"new")
        if fails:
            raise ZeroDivisionError
    after = {} if fails else {"first": b"new", "last": b"new"}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before | after
    with fs.open(log, mode) as file:
        file.write(b"new" if "b" in mode else "new")
    assert Path(log).read_bytes() == before.get("log", b"") + b"new"


@pytest.mark.parametrize("call", ["get", "put", "copy"])
def test_target_that_is_named_twice_is_the_last_source(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path, call: str) -> None:
    long, short = [*files][-1], [*files][1]
    targets = [f"file://{tmp_path}/target", f"{tmp_path}/other", f"{tmp_path}/target"]
    for _ in range(20):
        getattr(fs, call)([long, long, short], targets)
        assert fs.cat_file(targets[-1]) == files[short]
        assert fs.cat_file(targets[1]) == files[long]


@pytest.mark.parametrize("auto_mkdir", [False, True])
def test_folder_that_is_missing_is_made_with_auto_mkdir(fsspec_loop: object, tmp_path: Path, auto_mkdir: bool) -> None:
    fs = AioFileSystem(auto_mkdir=auto_mkdir)
    values = {str(tmp_path / "folder" / name): b"data" for name in "ab"}
    if auto_mkdir:
        fs.pipe(values)
        assert fs.cat([*values]) == values
    else:
        with pytest.raises(FileNotFoundError):
            fs.pipe(values)


@pytest.mark.parametrize("call", ["get", "put", "copy"])
def test_copies_report_each_file_to_the_callback(fs: AioFileSystem, files: dict[str, bytes], call: str) -> None:
    callback = Callback()
    targets = [path + "copy" for path in files]
    options = {} if call == "copy" else {"callback": callback}
    getattr(fs, call)([*files], targets, **options)
    assert fs.cat(targets) == {path + "copy": data for path, data in files.items()}
    if options:
        assert (callback.size, callback.value) == (len(files), len(files))


def test_copy_of_missing_files_raises_or_ignores(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path) -> None:
    sources = [str(tmp_path / "missing"), *files]
    targets = [str(tmp_path / f"target{i}") for i in range(len(sources))]
    with pytest.raises(FileNotFoundError):
        fs.copy(sources, targets)
    fs.copy(sources, targets, on_error="ignore")
    assert [fs.cat(path) for path in targets[1:]] == [*files.values()]
    fs.copy(sources, [targets[0], targets[0], *targets[2:]], on_error="ignore")
    assert fs.cat(targets[0]) == next(iter(files.values()))


def test_get_writes_to_file_objects(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    targets = [io.BytesIO() for _ in files]
    fs.get([*files], targets)
    assert [target.getvalue() for target in targets] == [*files.values()]


def null_device(path: Path) -> str:
    """Make a character device that takes what is written, as /dev/null."""
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    return str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
@pytest.mark.parametrize("call", ["get", "put", "copy", "pipe"])
def test_device_among_the_targets_is_written_and_kept(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path, call: str) -> None:
    device, other = null_device(tmp_path / "device"), str(tmp_path / "other")
    path, data = list(files.items())[-1]
    if call == "pipe":
        fs.pipe({device: data, other: data})
    else:
        getattr(fs, call)([path, path], [device, other])
    assert stat.S_ISCHR(os.lstat(device).st_mode)
    assert fs.cat_file(other) == data


@pytest.mark.parametrize("call", ["get", "put", "copy"])
def test_tree_with_special_files_is_copied_as_local(tmp_path: Path, fsspec_loop: object, call: str) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "file").write_bytes(b"data")
    (source / "below" / "file").write_bytes(b"more")
    os.mkfifo(source / "fifo")
    (source / "broken").symlink_to("nowhere")

    def outcome(system: LocalFileSystem, target: str) -> Any:
        try:
            getattr(system, call)(str(source), target, recursive=True)
        except OSError as error:
            return type(error)
        return sorted(name.removeprefix(target) for name in system.find(target, withdirs=True))

    assert outcome(AioFileSystem(), f"{tmp_path}/ours") == outcome(LocalFileSystem(), f"{tmp_path}/theirs")


def test_rm_of_many_removes_files_links_and_trees(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path) -> None:
    tree = tmp_path / "tree" / "below"
    tree.mkdir(parents=True)
    (tree / "file").write_bytes(b"")
    kept = tmp_path / "kept"
    kept.mkdir()
    link = tmp_path / "link"
    link.symlink_to(kept)
    with pytest.raises(ValueError, match="recursive=True"):
        fs.rm([str(tree.parent), str(link)])
    link.unlink(missing_ok=True)
    link.symlink_to(kept)
    fs.rm([*files, str(tree.parent), str(link)], recursive=True)
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("name", [".", "./.", "{}", "{}/.", "{}/folder/.."])
def test_rm_of_the_current_folder_is_refused(fs: AioFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for system in (LocalFileSystem(), fs):
        with pytest.raises(ValueError, match="current working directory"):
            system.rm([name.format(tmp_path)] * 2, recursive=True)
    assert os.listdir(tmp_path) == ["folder"]


def test_rm_of_a_missing_file_raises(fs: AioFileSystem, files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fs.rm([*files, str(tmp_path / "missing")])


# ---- the caller's loop


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_coroutines_run_on_the_callers_loop(files: dict[str, bytes], tmp_path: Path, use_uvloop: bool) -> None:
    async def main() -> None:
        fs = asynchronous()
        path, data = list(files.items())[-1]
        assert await fs._cat([*files]) == files
        assert await fs._cat(path) == await fs._cat_file(path) == data
        assert await fs._cat_file(path, -10, None) == data[-10:]
        assert await fs._cat_ranges([path, path], [0, -5], [5, None], max_gap=0) == [data[:5], data[-5:]]
        assert await fs._info(path) == fs.info(path)
        assert await fs._ls(str(tmp_path)) == fs.ls(str(tmp_path), detail=True)
        assert await fs._find(str(tmp_path)) == fs.find(str(tmp_path))
        assert await fs._glob(f"{tmp_path}/f*") == fs.glob(f"{tmp_path}/f*")
        assert (await fs._exists(path), await fs._isfile(path), await fs._isdir(path), await fs._size(path)) == (True, True, False, SIZE)
        folder = str(tmp_path / "folder")
        await fs._mkdir(folder)
        await fs._makedirs(folder, exist_ok=True)
        await fs._pipe({f"{folder}/a": b"a", f"{folder}/b": b"b"})
        with pytest.raises(FileExistsError):
            await fs._pipe_file(f"{folder}/a", b"", mode="create")
        await fs._copy(f"{folder}/a", f"{folder}/c")
        await fs._get(folder, f"{folder}2", recursive=True)
        await fs._put(f"{folder}2", f"{folder}3", recursive=True)
        with pytest.raises(FileExistsError):
            await fs._put_file(f"{folder}/a", f"{folder}/b", mode="create")
        assert await fs._cat(f"{folder}3", recursive=True, on_error="omit") == {
            f"{folder}3/{name}": name.replace("c", "a").encode() for name in "abc"
        }
        await fs._rm_file(f"{folder}/a")
        await fs._rm([folder, f"{folder}2", f"{folder}3"], recursive=True)
        with pytest.raises(FileNotFoundError):
            await fs._cat_file(folder)
        assert await fs._cat(["/dev/null", path]) == {"/dev/null": b"", path: data}
        assert await fs._cat_file("/dev/null") == await fs._cat("/dev/null") == b""
        assert await fs._cat_file("/dev/zero", 0, 5) == bytes(5)
        with pytest.raises(RuntimeError, match="asynchronous=True: await its coroutines"):
            fs.cat([*files])

    anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    assert sorted(files) == sorted(map(str, tmp_path.iterdir()))


def test_put_with_mode_create_replaces_no_file(files: dict[str, bytes], tmp_path: Path) -> None:
    targets = [str(tmp_path / f"target{index}") for index in range(len(files))]
    Path(targets[1]).write_bytes(b"kept")

    async def main() -> None:
        fs = asynchronous()
        with pytest.raises(FileExistsError):
            await fs._put([*files], targets, mode="create")
        with pytest.raises(FileExistsError):
            await fs._put([*files][-1], targets[1], mode="create")
        assert await fs._cat_file(targets[1]) == b"kept"
        await fs._put([*files], targets)
        assert await fs._cat(targets) == dict(zip(targets, files.values(), strict=True))

    anyio.run(main)


def test_get_writes_to_file_objects_on_the_callers_loop(files: dict[str, bytes]) -> None:
    targets = [io.BytesIO() for _ in files]
    anyio.run(lambda: asynchronous()._get([*files], targets))
    assert [target.getvalue() for target in targets] == [*files.values()]


def asynchronous(auto_mkdir: bool = False) -> AioFileSystem:
    return AioFileSystem(auto_mkdir=auto_mkdir, asynchronous=True, skip_instance_cache=True)


def test_open_async_reads_as_a_local_file(files: dict[str, bytes]) -> None:
    async def main() -> None:
        for path, data in files.items():
            file = await asynchronous().open_async(f"aio://{path}")
            assert isinstance(file, AbstractAsyncStreamedFile)
            with open(path, "rb") as model:  # noqa: ASYNC230
                assert (file.size, file.tell(), file.closed, file.mode) == (len(data), 0, False, "rb")
                for size in (3, 0, 5000, 1 << 40, 1, None, -1):
                    assert await file.read(size) == model.read(None if size is None else min(size, SIZE))
                    assert file.tell() == model.tell()
                for position in ((7, 0), (-2, 1), (0, 2), (len(data) + 10, 0)):
                    if len(data) > 7:
                        assert file.seek(*position) == model.seek(*position)
                        assert await file.read(4) == model.read(4)
            with pytest.raises(ValueError, match="must be open with mode wb"):
                await file.write(b"")
            await file.close()
            await file.close()
            assert file.closed
            with pytest.raises(ValueError, match="closed file"):
                await file.read()

    asyncio.run(main())


def test_open_async_reads_a_file_that_the_kernel_makes_up() -> None:
    data = Path("/proc/version").read_bytes()  # stat(2) says that it has 0 bytes

    async def main() -> None:
        for size in (-1, 1 << 40):
            async with await asynchronous().open_async("/proc/version") as file:
                assert await file.read(5) == data[:5]
                assert await file.read(size) == data[5:]
                assert await file.read(size) == b""

    asyncio.run(main())


def test_open_async_writes_as_a_local_file(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "file")

    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await asynchronous().open_async(path, "wb")
        fs = asynchronous(auto_mkdir=True)
        for mode, expected in (("xb", b"12"), ("ab", b"1212"), ("wb", b"12")):
            async with await fs.open_async(path, mode) as file:
                start = file.tell()
                assert start == (2 if mode == "ab" else 0)
                assert await file.write(b"1") == await file.write(memoryview(b"2")) == 1
                await file.flush()
                assert Path(path).read_bytes() == expected  # noqa: ASYNC240
                assert file.tell() == start + 2
                with pytest.raises(ValueError, match="must be open with mode rb"):
                    await file.read()
                with pytest.raises(OSError, match="Seek only available in read mode"):
                    file.seek(0)
        with pytest.raises(ValueError, match="closed file"):
            await file.flush()
        with pytest.raises(FileExistsError):
            await fs.open_async(path, "xb")
        with pytest.raises(FileNotFoundError):
            await fs.open_async(path + "2")
        for mode, options in (("r", {}), ("w", {}), ("rb", {"compression": "gzip"})):
            with pytest.raises(ValueError, match="binary files without compression"):
                await fs.open_async(path, mode, **options)
        for mode, options in (("r+b", {}), ("wb", {"autocommit": False})):
            with pytest.raises(NotImplementedError, match="has the modes rb, wb, ab, xb"):
                await fs.open_async(path, mode, **options)

    asyncio.run(main())


def test_open_async_file_that_is_dropped_warns_and_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")

    async def main() -> None:
        file = await asynchronous().open_async(str(path))
        kept = [file]
        del file
        with pytest.warns(ResourceWarning):
            kept.clear()

    asyncio.run(main())
    assert str(path) not in opened_paths()


@pytest.mark.parametrize("call", ["cat", "cat_ranges", "cat_ranges from the end", "copy", "pipe", "open_async"])
def test_coroutine_that_is_cancelled_leaves_no_descriptor_and_no_temporary_name(tmp_path: Path, call: str) -> None:
    paths = [str(tmp_path / f"{index}") for index in range(80)]
    for path in paths:
        Path(path).write_bytes(content(5000))
    new = [path + "0" for path in paths]

    async def read_streamed(fs: AioFileSystem) -> None:
        for path in paths:
            async with await fs.open_async(path) as file:
                await file.read()

    async def main(ticks: int) -> None:
        fs = asynchronous()
        calls = {
            "cat": lambda: fs._cat(paths),
            "cat_ranges": lambda: fs._cat_ranges(paths * 2, 3, 4000, max_gap=10),
            "cat_ranges from the end": lambda: fs._cat_ranges(paths, -3, None),
            "copy": lambda: fs._copy(paths, new),
            "pipe": lambda: fs._pipe(dict.fromkeys(new, b"data")),
            "open_async": lambda: read_streamed(fs),
        }
        task = asyncio.create_task(calls[call]())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        # A worker may still be reading a file.
        while trio_aio.current_context().statistics().in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)

    for ticks in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55):
        asyncio.run(main(ticks))
        assert not [path for path in opened_paths() if path.startswith(str(tmp_path))]
        assert {*os.listdir(tmp_path)} <= {os.path.basename(path) for path in paths + new}


def test_several_threads_share_a_filesystem(fs: AioFileSystem, files: dict[str, bytes]) -> None:
    paths = [*files] * 5
    expected = [data[-10:] for data in files.values()] * 5

    def call(_: int) -> bool:
        return fs.cat([*files]) == files and fs.cat_ranges(paths, -10, None) == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(40)))


# ---- fsspec around it


def test_fsspec_finds_it_by_entry_point_and_url(fsspec_loop: object, tmp_path: Path) -> None:
    assert fsspec.get_filesystem_class("aio") is AioFileSystem
    with fsspec.open(f"aio://{tmp_path}/file", "wb") as file:
        file.write(b"data")
    with fsspec.open(f"aio://{tmp_path}/file", "rb") as file:
        assert file.read() == b"data"
    assert fsspec.filesystem("aio").unstrip_protocol("/x") == "aio:///x"


def test_register_with_clobber_replaces_file_and_local() -> None:
    program = """
import fsspec
from trio_aio.integrations.fsspec import AioFileSystem, register
register()
assert type(fsspec.filesystem("file")) is not AioFileSystem
register(clobber=True)
assert type(fsspec.filesystem("file")) is type(fsspec.filesystem("local")) is type(fsspec.filesystem("aio")) is AioFileSystem
fs, path = fsspec.core.url_to_fs("file:///etc/hostname")
assert path == "/etc/hostname"
"""
    check([sys.executable, "-X", "dev", "-c", program])


def test_pickled_object_is_the_same_filesystem(fs: AioFileSystem) -> None:
    assert pickle.loads(pickle.dumps(fs)) is fs
    assert AioFileSystem.from_json(fs.to_json()) == fs


def test_new_object_works_after_fork_and_an_old_one_is_refused(tmp_path: Path) -> None:
    program = """
import os, sys, warnings, fsspec
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
path = sys.argv[1]
paths = [f"{path}/{i}" for i in range(5)]
fs = fsspec.filesystem("aio")
fs.pipe({path: b"data" for path in paths})
child = os.fork()
if not child:
    try:
        fs.cat(paths)
    except RuntimeError as error:
        assert "before a fork" in str(error), error
    else:
        os._exit(2)
    new = fsspec.filesystem("aio")
    os._exit(0 if new is not fs and new.cat(paths) == {path: b"data" for path in paths} else 3)
assert os.waitpid(child, 0)[1] == 0
assert len(fs.cat(paths)) == 5
"""
    check([sys.executable, "-X", "dev", "-c", program, str(tmp_path)], harmless=SLOW)


def test_missing_package_is_an_import_error_that_names_the_extra() -> None:
    program = "import sys; sys.modules['fsspec'] = None; import trio_aio.integrations.fsspec"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: .*pip install 'trio-aio\[fsspec\]'", done.stderr)


def test_trio_aio_imports_no_integration() -> None:
    program = """
import sys, trio_aio, trio_aio.testing, trio_aio.lowlevel
names = {"fsspec", "zarr", "starlette", "trio_aio.integrations"}
assert not names & sys.modules.keys(), names & sys.modules.keys()
"""
    check([sys.executable, "-c", program])


# ---- the table of docs/integrations.md


def table() -> dict[str, str]:
    """Return which class serves each name, as the page says."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(AioFileSystem|LocalFileSystem|AsyncFileSystem)` \| (.*?) \|$", text, re.MULTILINE)
    return {name: owner for owner, names in rows for name in re.findall(r"`(\w+)`", names)}


def test_table_says_which_class_serves_each_name() -> None:
    names = {name for name in dir(AioFileSystem) if not name.startswith("_") and callable(getattr(AioFileSystem, name))}
    coroutines = {name for name in dir(AsyncFileSystem) if inspect.iscoroutinefunction(getattr(AsyncFileSystem, name))}
    names |= coroutines - {name for name in coroutines if name.startswith("__")}
    served = {name: next(cls.__name__ for cls in AioFileSystem.__mro__ if name in vars(cls)) for name in names | {*async_methods}}
    # The page says that all names without a row are AbstractFileSystem's.
    assert table() == {name: owner for name, owner in served.items() if owner != "AbstractFileSystem"}
