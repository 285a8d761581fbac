"""`Path`, compared with ``pathlib.Path``: directly, and by hypothesis on random trees and patterns."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import inspect
import itertools
import os
import pathlib
import pickle
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_aio import Path, open_aio

from ..support.trees import make_tree, outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NAMES = (
    *("one.py", "a", "link to file", "link to directory", "broken", "loop", "fifo", "absent", "absent/x", "one.py/x", ".", "a/link up"),
    *("/", "~"),
)
LOOKS = (
    *("exists", "is_dir", "is_file", "is_symlink", "is_socket", "is_fifo", "is_block_device", "is_char_device", "is_mount"),
    *("stat", "lstat"),
)
OTHER = ("absolute", "expanduser", "resolve", "readlink", "owner", "group", "read_bytes", "read_text")


async def tried(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    try:
        return await call(*arguments, **options)
    except Exception as error:
        return outcome(error)


def plainly(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except Exception as error:
        return outcome(error)


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(make_tree(tmp_path))
    return tmp_path


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
class TestAsPathlib:
    @pytest.mark.parametrize("name", NAMES)
    async def test_looking_equals_pathlib(self, tree: pathlib.Path, name: str) -> None:
        for call in (*LOOKS, *OTHER):
            if name == "fifo" and call.startswith("read_"):
                continue  # pathlib would wait for a writer
            wanted = plainly(getattr(pathlib.Path(name), call))
            for _ in range(2):
                got = await tried(getattr(Path(name), call))
                if call.startswith("read_") and isinstance(wanted, tuple):
                    assert got[:2] == wanted[:2]
                elif call == "resolve" and isinstance(wanted, tuple):
                    assert got[0] is wanted[0]
                else:
                    assert got == wanted, call
                if isinstance(wanted, pathlib.Path):
                    assert type(got) is Path
        for strict in (True, False):
            wanted = plainly(pathlib.Path(name).resolve, strict=strict)
            got = await tried(Path(name).resolve, strict=strict)
            assert got[:2] == wanted[:2] if isinstance(wanted, tuple) else got == wanted

    async def test_names_that_cannot_be_equal_pathlib(self) -> None:
        for call in LOOKS:
            if call not in ("is_mount",) or sys.version_info >= (3, 12):
                assert await tried(getattr(Path("a\0b"), call)) == plainly(getattr(pathlib.Path("a\0b"), call)), call

    @pytest.mark.parametrize(
        ("call", "name", "arguments", "options"),
        [
            ("touch", "new", (), {}),
            ("touch", "one.py", (), {}),
            ("touch", "one.py", (), {"exist_ok": False}),
            ("touch", "absent/new", (), {}),
            ("touch", "broken", (), {}),
            ("mkdir", "new", (0o700,), {}),
            ("mkdir", "x/y/z", (), {"parents": True}),
            ("mkdir", "x/y/z", (), {}),
            ("mkdir", "a", (), {"exist_ok": True}),
            ("mkdir", "one.py", (), {"exist_ok": True}),
            ("mkdir", "one.py/x/y", (), {"parents": True, "exist_ok": True}),
            ("mkdir", "link to directory/x/y", (), {"parents": True}),
            ("mkdir", "broken/x/y", (), {"parents": True}),
            ("unlink", "one.py", (), {}),
            ("unlink", "absent", (), {"missing_ok": True}),
            ("unlink", "absent", (), {}),
            ("unlink", "a", (), {}),
            ("rmdir", "empty", (), {}),
            ("rmdir", "a", (), {}),
            ("rename", "one.py", ("moved",), {}),
            ("rename", "absent", ("moved",), {}),
            ("replace", "one.py", ("a/two.txt",), {}),
            ("chmod", "one.py", (0o600,), {}),
            ("symlink_to", "new link", ("x y",), {}),
            ("symlink_to", "one.py", ("x",), {}),
            ("hardlink_to", "same", ("one.py",), {}),
            ("hardlink_to", "same", ("link to file",), {}),
            ("hardlink_to", "same", ("absent",), {}),
            ("write_text", "new", ("täxt",), {"encoding": "utf-8"}),
            ("write_bytes", "one.py", (b"bytes",), {}),
        ],
    )
    async def test_change_equals_pathlib(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str, arguments: Any, options: Any
    ) -> None:
        states = []
        results = []
        for kind in (pathlib.Path, Path):
            top = tmp_path / kind.__module__
            top.mkdir()
            monkeypatch.chdir(make_tree(top))
            bound = getattr(kind(name), call)
            results.append(plainly(bound, *arguments, **options) if kind is pathlib.Path else await tried(bound, *arguments, **options))
            states.append(sorted((str(path.relative_to(top)), path.lstat().st_mode, path.lstat().st_nlink) for path in top.rglob("*")))
        assert results[1] == results[0]
        assert states[1] == states[0]

    async def test_open_takes_pathlibs_arguments(self, tree: pathlib.Path) -> None:
        async with Path("one.py").open() as file:
            assert await file.read() == "one.py"
        async with Path("new").open("w", encoding="utf-8", newline="\r\n") as file:
            await file.write("a\n")
        assert (tree / "new").read_bytes() == b"a\r\n"
        file = await Path("one.py").open("rb")
        assert await file.read() == b"one.py"
        await file.aclose()
        async with open_aio(Path("one.py")) as file:
            assert file.name == "one.py"

    async def test_samefile_cwd_and_home_equal_pathlib(self, tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert await Path("link to file").samefile("one.py")
        assert not await Path("a").samefile(pathlib.Path("b"))
        assert await Path.cwd() == pathlib.Path.cwd()
        assert await Path.home() == pathlib.Path.home()
        monkeypatch.delenv("HOME")
        assert await Path.home() == pathlib.Path.home()
        assert await Path("~root/x").expanduser() == pathlib.Path("~root/x").expanduser()
        with pytest.raises(RuntimeError, match="home directory"):
            await Path("~no such user/x").expanduser()

    async def test_from_uri_equals_pathlib(self) -> None:
        assert Path.from_uri("file:///a/b%20c") == pathlib.PurePosixPath("/a/b c")
        assert Path.from_uri("file://localhost/a") == Path.from_uri("file:/a") == Path("/a")
        for path in ("/", "//a/b", "//", "/a%20b/ü", "/a//b"):
            assert Path.from_uri(Path(path).as_uri()) == Path(path)
        assert Path.from_uri("file://localhost//a") == Path("//a")
        assert Path.from_uri("file:%2fa") == Path("/a")
        for wrong in ("file:a", "http://a/b", "/a", "file://host/a", "file://", "file:"):
            with pytest.raises(ValueError, match="URI"):
                Path.from_uri(wrong)

    async def test_owner_without_a_name_is_key_error(self, tree: pathlib.Path) -> None:
        os.chown("one.py", 54321, 54322)
        for call in ("owner", "group"):
            with pytest.raises(KeyError) as wanted:
                getattr(pathlib.Path("one.py"), call)()
            with pytest.raises(KeyError) as got:
                await getattr(Path("one.py"), call)()
            assert str(got.value) == str(wanted.value)

    async def test_info_is_what_the_listing_saw(self, tree: pathlib.Path) -> None:
        for path in (*await Path().iterdir(), *await Path().rglob("*")):
            plain = pathlib.Path(path)
            assert path.info.is_symlink() == plain.is_symlink()
            if path.name != "loop":
                assert (path.info.exists(), path.info.is_dir(), path.info.is_file()) == (plain.exists(), plain.is_dir(), plain.is_file())
            assert path.info.is_dir(follow_symlinks=False) == (plain.is_dir() and not plain.is_symlink())
        with pytest.raises(RuntimeError, match="no listing"):
            _ = Path("one.py").info

    @pytest.mark.parametrize("pattern", ["/absolute", ""])
    async def test_pattern_is_checked_at_the_call(self, pattern: str) -> None:
        with pytest.raises((ValueError, NotImplementedError)) as wanted:
            list(pathlib.Path().glob(pattern))
        with pytest.raises(wanted.type):
            Path().glob(pattern)

    async def test_glob_skips_what_cannot_be_read(self, tree: pathlib.Path) -> None:
        assert await Path("absent").glob("*") == []
        assert await Path("one.py").rglob("*") == []

    async def test_glob_can_ignore_case(self, tree: pathlib.Path) -> None:
        assert await Path().glob("ONE.PY", case_sensitive=False) == [pathlib.Path("one.py")]
        assert await Path().glob("ONE.*", case_sensitive=True) == []

    async def test_glob_can_recurse_into_links(self, tree: pathlib.Path) -> None:
        found = await Path("link to directory").rglob("*.py")
        assert set(found) == {Path("link to directory/f/four.py"), Path("link to directory/with space/eight.py")}
        (tree / "a/link up").unlink()
        assert Path("link to directory/f/four.py") in await Path().rglob("four.py", recurse_symlinks=True)
        assert Path("link to directory/f/four.py") not in await Path().rglob("four.py")


def test_pure_operations_are_pathlibs() -> None:
    path = Path("/a", "b.txt")
    assert repr(path) == "Path('/a/b.txt')"
    for result in (path / "c", "x" / path, path.parent, path.with_suffix(".py"), path.joinpath("d"), path.relative_to("/a"), *path.parents):
        assert type(result) is Path
    assert path == pathlib.Path("/a/b.txt")
    assert hash(path) == hash(pathlib.Path("/a/b.txt"))
    assert not isinstance(path, pathlib.Path)
    assert pickle.loads(pickle.dumps(path)) == path
    assert type(pickle.loads(pickle.dumps(path))) is Path
    assert os.fspath(path) == "/a/b.txt"
    assert {pathlib.PurePosixPath("/a/b.txt"): 1}[path] == 1
    assert sorted([Path("b"), Path("a")]) == [Path("a"), Path("b")]


def test_subclass_is_kept() -> None:
    class Mine(Path):
        pass

    assert type(Mine("a") / "b") is Mine
    assert type(Mine("a").parent) is Mine


def test_every_public_method_of_pathlib_is_there() -> None:
    removed = {"link_to"}  # by Python 3.12
    assert {name for name in dir(pathlib.Path) if not name.startswith("_")} - set(dir(Path)) <= removed
    for name in dir(Path):
        if not name.startswith("_") and inspect.iscoroutinefunction(getattr(Path, name)):
            assert getattr(Path, name).__doc__


# ---- hypothesis

_names = st.sampled_from(["a", "b", "A", ".a", "ab", "a.py", "b.PY", "[x]", "**"])
_kinds = st.sampled_from(["directory", "file", "link", "broken"])
_steps = st.lists(st.tuples(_kinds, st.lists(_names, min_size=1, max_size=3)), max_size=12)
_parts = st.sampled_from(["*", "**", "a", "b", "?", "*.py", "[ab]", ".*", "..", "a*", "[!a]", "a.py", "[[]x]"])
_patterns = st.lists(_parts, max_size=4).map("/".join)


def build(top: pathlib.Path, steps: list[tuple[str, list[str]]]) -> None:
    for kind, parts in steps:
        path = top.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "directory":
                path.mkdir()
            elif kind == "file":
                path.touch(exist_ok=False)
            else:
                path.symlink_to(os.path.relpath(top / parts[0], path.parent) if kind == "link" else "no such name")
        except OSError:
            continue  # there is a file on the way, or the name is taken


@given(_steps, st.lists(st.tuples(_patterns, st.booleans(), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_glob_equals_pathlib_on_random_trees(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str]]], patterns: list[tuple[str, bool, bool]]
) -> None:
    # Deep enough that no pattern leads out by "..", to where other programs make files.
    base = tmp_path_factory.mktemp("trees")
    top = base / "1/2/3/4/5/6"
    top.mkdir(parents=True)
    try:
        build(top, steps)

        async def main() -> None:
            for (pattern, recursive, slash), start in itertools.product(patterns, (top, top / "a")):
                text = pattern + "/" * (slash and pattern != "")
                call = "rglob" if recursive else "glob"
                try:
                    wanted = {str(path) for path in getattr(start, call)(text)}
                except (ValueError, IndexError) as error:
                    if isinstance(error, ValueError):
                        with pytest.raises(ValueError, match="pattern"):
                            getattr(Path(start), call)(text)
                    continue
                except OSError:
                    continue  # up to 3.11 pathlib lets some out
                got = await getattr(Path(start), call)(text)
                assert {str(path) for path in got} == wanted, (call, text)
                assert len({str(path) for path in got}) == len(got), (call, text)

        trio.run(main)
    finally:
        shutil.rmtree(base)


@given(_steps)
@settings(max_examples=50, deadline=None)
def test_listing_equals_pathlib_on_random_trees(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str]]]) -> None:
    top = tmp_path_factory.mktemp("trees")
    try:
        build(top, steps)

        async def main() -> None:
            for path in (top, *top.rglob("*")):
                ours = Path(path)
                for call in ("exists", "is_dir", "is_file", "is_symlink"):
                    assert await tried(getattr(ours, call)) == plainly(getattr(path, call))
                got, wanted = await tried(ours.resolve), plainly(path.resolve)
                assert got[0] is wanted[0] if isinstance(wanted, tuple) else got == wanted
                if path.is_dir():
                    assert sorted(await ours.iterdir()) == sorted(path.iterdir())
            if sys.version_info >= (3, 12):
                assert sorted((str(p), sorted(d), sorted(f)) for p, d, f in await Path(top).walk()) == sorted(
                    (str(p), sorted(d), sorted(f)) for p, d, f in top.walk()
                )

        trio.run(main)
    finally:
        shutil.rmtree(top)


FROM_3_13 = pytest.mark.skipif(sys.version_info < (3, 13), reason="patterns are paths too from Python 3.13 on")


@pytest.mark.trio
async def test_null_byte_is_refused_at_the_call(tree: pathlib.Path) -> None:
    for pattern in ("\0", "a\0*", "*/\0", "**/x\0/*"):
        for call in (Path(tree).glob, Path(tree).rglob):
            with pytest.raises(ValueError, match="null byte"):
                call(pattern)
    for listing in (lambda path: path.glob("*"), lambda path: path.rglob("*"), Path.iterdir, Path.walk, Path.scandir):
        with pytest.raises(ValueError, match="null byte"):
            listing(Path("\0"))


@pytest.mark.trio
@pytest.mark.parametrize("pattern", ["", ".", "*/..", pytest.param(pathlib.PurePath("*"), marks=FROM_3_13)])
async def test_rglob_of_few_characters_equals_pathlib(tmp_path: pathlib.Path, pattern: Any) -> None:
    make_tree(tmp_path)
    wanted = sorted(str(path) for path in tmp_path.rglob(pattern))
    assert sorted(str(path) for path in await Path(tmp_path).rglob(pattern)) == wanted
