"""Each recipe of docs/recipes.md runs from a clean environment with the two commands of its page, and the wheel of this tree."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ..conftest import need
from ..project.test_recipes import receiver
from ..support.examples import EXAMPLES, may_take_long, started
from ..support.files import content
from ..support.wheel import PIP, build_wheel, make_environment, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..project.test_recipes import Receiver
    from ..support.examples import Started

pytestmark = pytest.mark.slow

__all__ = ("receiver",)

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
LONGEST = 600  # seconds for a command


class Recipe(NamedTuple):
    """The two commands of a section, as lists of words."""

    install: list[str]
    program: list[str]


def recipes() -> dict[str, Recipe]:
    """Return the recipes of the page, by the name of their program."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        install, program = map(shlex.split, block.splitlines())
        assert install[:2] == ["pip", "install"]
        assert program[0] == "python"
        name = Path(program[1]).stem
        assert name not in found
        found[name] = Recipe(install, program)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    may_take_long()
    return build_wheel(tmp_path_factory.mktemp("dist"))


class Clean:
    """A recipe that was installed. Its program is not in the source tree, so that it finds only what was installed."""

    def __init__(self, recipe: Recipe, wheel: Path, folder: Path) -> None:
        self.folder: Path = folder
        self._program: list[str] = recipe.program
        shutil.copytree(EXAMPLES, folder / "examples")
        self._python: Path = make_environment(folder / "environment")
        # From a clone, "." is the project, and ".[zarr]" the project with an extra.
        packages = [re.sub(r"^\.(?=$|\[)", lambda _: str(wheel), word) for word in recipe.install[2:]]
        assert packages != recipe.install[2:]
        self._command([self._python, *PIP, "install", *packages])
        where = self._command([self._python, "-c", "import trio_aio; print(trio_aio.__file__)"])
        assert Path(where.strip()).is_relative_to(folder / "environment")

    def _command(self, command: list[str | Path]) -> str:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=LONGEST, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def words(self, values: dict[str, object]) -> list[str]:
        """Return the words after "python", with values in place of the names in capitals."""
        names = [word for word in self._program if word.isupper()]
        assert set(names) == set(values)
        return [str(values.get(word, word)) for word in self._program[1:]]

    def run(self, *options: object, **values: object) -> str:
        """Run the program, and return what it printed."""
        return self._command([self._python, *self.words(values), *map(str, options)])

    def start(self, *options: object, **values: object) -> AbstractContextManager[Started]:
        """Start a program that runs until it is ended."""
        name, *words = self.words(values)
        return started(name, *words, *options, python=str(self._python), folder=self.folder)


@pytest.fixture(autouse=True)
def _no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)


CHECKS: dict[str, Callable[[Clean, pytest.FixtureRequest], None]] = {}


def check(function: Callable[[Clean, pytest.FixtureRequest], None]) -> None:
    """Note what runs a recipe, and says whether it did its work."""
    CHECKS[function.__name__] = function


@check
def upload(clean: Clean, request: pytest.FixtureRequest) -> None:
    server: Receiver = request.getfixturevalue("receiver")
    file = clean.folder / "file"
    file.write_bytes(content(3_000_000))
    assert clean.run(FILE=file, URL=f"http://127.0.0.1:{server.server_port}/x") == "201\n"
    assert server.received == [(None, file.read_bytes())]


@check
def read_tensors(clean: Clean, request: pytest.FixtureRequest) -> None:
    header = json.dumps({"bias": {"dtype": "I16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (clean.folder / "model").write_bytes(len(header).to_bytes(8, "little") + header + bytes([1, 0, 2, 0, 3, 0, 4, 0]))
    assert clean.run(FILE="model", NAME="bias") == "bias: int16 [2, 2], sum 10\n"


@check
def list_archive(clean: Clean, request: pytest.FixtureRequest) -> None:
    with zipfile.ZipFile(clean.folder / "archive.zip", "w") as archive:
        archive.writestr("name", b"contents")
    assert clean.run(ARCHIVE="archive.zip") == f"{zlib.crc32(b'contents'):08x}  name\n"


@check
def content_store(clean: Clean, request: pytest.FixtureRequest) -> None:
    (clean.folder / "file").write_bytes(b"contents")
    digest = hashlib.sha256(b"contents").hexdigest()
    assert clean.run(STORE="store", FILE="file") == f"{digest}  file\n"
    assert (clean.folder / "store" / digest[:2] / digest[2:]).read_bytes() == b"contents"


@check
def spilling_cache(clean: Clean, request: pytest.FixtureRequest) -> None:
    assert clean.run(FILE="cache") == "64 blocks, 56 places on the disk, 0 wrong\n"


@check
def append_log(clean: Clean, request: pytest.FixtureRequest) -> None:
    assert clean.run(LOG="log").endswith("the log has 1,600\n")


@check
def page_server(clean: Clean, request: pytest.FixtureRequest) -> None:
    with clean.start("--port", 0, FILE=clean.folder / "pages") as server:
        port = server.line().split()[-1]
        program = clean.folder / "examples" / "page_server.py"
        run(sys.executable, program, "put", "7", "a text", "--port", port)
        assert run(sys.executable, program, "get", "7", "--port", port) == "a text\n"


@check
def tail_log(clean: Clean, request: pytest.FixtureRequest) -> None:
    log = clean.folder / "log"
    with clean.start("--from-start", LOG=log) as tail:
        log.write_bytes(b"a line\n")
        assert tail.line() == "a line"


@check
def fuse_passthrough(clean: Clean, request: pytest.FixtureRequest) -> None:
    folder, mounted = clean.folder / "folder", clean.folder / "mounted"
    folder.mkdir()
    mounted.mkdir()
    with clean.start(FOLDER=folder, MOUNTPOINT=mounted) as server:
        server.line()
        try:
            (mounted / "file").write_bytes(b"contents")
            assert (folder / "file").read_bytes() == b"contents"
        finally:
            server.process.send_signal(signal.SIGINT)
            server.process.wait(LONGEST)
    assert server.process.returncode == 0


@check
def dask_cluster(clean: Clean, request: pytest.FixtureRequest) -> None:
    *lines, last = clean.run(FOLDER="data").splitlines()
    assert len(lines) == 6 + 16
    assert last == "0 workers died"


@pytest.mark.parametrize("name", CHECKS)
def test_recipe_runs_from_a_clean_environment(name: str, wheel: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    may_take_long()
    if name == "fuse_passthrough":
        need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a folder")
        need(shutil.which("fusermount3") is not None and shutil.which("pkg-config") is not None, "fuse3 and libfuse3-dev")
    if name == "dask_cluster" and sys.version_info < (3, 12):
        pytest.skip("zarr 3.4 needs Python 3.12")
    CHECKS[name](Clean(recipes()[name], wheel, tmp_path), request)


def test_every_recipe_is_checked() -> None:
    assert recipes().keys() == CHECKS.keys()
