"""The tests of trio, anyio and Starlette that use files, with our files in the places of theirs.

Their tests are in their source archives, which pip fetches with what the tests need. Without a package index there is nothing to run. Each
suite runs as it is, with `open_file` in the place of theirs, and under `install`, without and with its options. Starlette's also run with
our `FileResponse` and `StaticFiles`. The failures are listed here, each with its reason; a test that fails and is not listed, or no longer
fails, is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import trio._tests

pytestmark = pytest.mark.slow

STARLETTE = version("starlette")
NEEDED = ("trustme", "psutil", "pytest-mock", "pytest-timeout", "blockbuster", "httpx2[zstd]", "itsdangerous", "jinja2", "python-multipart")
# Here already. Another copy would be imported instead.
HERE = ("anyio", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "py.py", "typing_extensions.py", "cffi", "pygments", "starlette")

PLUGIN = """
import os

def pytest_configure(config):
    import anyio, trio, trio_aio
    how = os.environ["HOW"]
    if how == "open_file":
        trio.open_file = anyio.open_file = trio_aio.open_file
    elif how == "install":
        trio_aio.install()
    elif how == "install, all":
        trio_aio.install(streams=True, whole=True, names=True)
    elif how == "integration":
        import starlette.responses, starlette.staticfiles
        trio_aio.install()
        # Their tests note what anyio.open_file has opened, to see that it is closed.
        trio_aio.open_aio = lambda path: anyio.open_file(path, mode="rb")
        from trio_aio.integrations.starlette import FileResponse, StaticFiles
        starlette.responses.FileResponse = starlette.staticfiles.FileResponse = FileResponse
        starlette.staticfiles.StaticFiles = StaticFiles
"""
RUN = """
import sys
sys.path += sys.argv[1:3]
import pytest
sys.exit(pytest.main(sys.argv[3:]))
"""

NOT_REGISTERED = "isinstance with trio's wrapper: only `install` makes our files count as such"
PRIVATE = "looks at a private attribute of anyio's class, or patches what it calls"
NO_CLOSE = "closes `extra(FileStreamAttribute.file)` by `close`: that is an AsyncFile, which has `aclose`"
MESSAGES = "wants each header and each piece of a range in a message of its own; ours have the header and the range in one"
ROOT = "fails without us too: it needs a directory that it may not read, and root may read all"

KNOWN: dict[tuple[str, str], dict[str, str]] = {
    ("trio", "open_file"): {"test_open": NOT_REGISTERED, "test_open_context_manager": NOT_REGISTERED},
    ("anyio", "install, all"): {
        "test_cancelled_during_rollover": PRIVATE,
        "test_default_max_size_no_rollover": PRIVATE,
        "test_exact_boundary_no_rollover": PRIVATE,
        "test_cancellation_during_creation": PRIVATE,
        "test_close_on_cancel": NO_CLOSE,
    },
    ("starlette", "integration"): {"test_file_response_multi_small_chunk_size": MESSAGES},
}
if os.geteuid() == 0:
    for way in ("as it is", "install", "install, all", "integration"):
        known = KNOWN.setdefault(("starlette", way), {})
        known["test_staticfiles_with_invalid_dir_permissions_returns_401"] = ROOT


class Sources(NamedTuple):
    """Folders: the unpacked archives, and the packages that their tests need."""

    archives: Path
    needed: Path


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a package index with source archives: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    archives, needed = folder / "archives", folder / "needed"
    names = [f"anyio=={version('anyio')}", f"starlette=={STARLETTE}"]
    pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(archives), *names)
    for archive in archives.glob("*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(archives, filter="data")
    pip("install", "--target", str(needed), *NEEDED)
    for name in HERE:
        path = needed / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    (needed / "replacing.py").write_text(PLUGIN)
    trio_tests = archives / "trio"
    trio_tests.mkdir()
    for name in ("test_file_io.py", "test_path.py"):
        shutil.copy(Path(trio._tests.__file__).parent / name, trio_tests)
    return Sources(archives, needed)


def run_suite(sources: Sources, folder: str, how: str, *arguments: str) -> set[str]:
    """Run tests in a process of their own. Return the names of those that failed, without parameters."""
    options = ["-q", "-rfE", "-p", "replacing", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]
    command = [sys.executable, "-c", RUN, str(sources.needed), str(sources.archives / folder), *options]
    environment = os.environ | {"HOW": how}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=sources.archives / folder, env=environment, capture_output=True, text=True, check=False)
    assert re.search(r"^\d+ passed|, \d+ passed", done.stdout, re.MULTILINE), done.stdout[-3000:] + done.stderr[-3000:]
    return set(re.findall(r"^(?:FAILED|ERROR) [^ ]*::(\w+)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("how", ["as it is", "open_file", "install", "install, all"])
def test_trio_file_tests_pass(sources: Sources, how: str) -> None:
    options = ["-p", "trio._tests.pytest_plugin", "-c", os.devnull, "--rootdir", ".", "-p", "no:anyio"]
    failed = run_suite(sources, "trio", how, *options, "test_file_io.py", "test_path.py")
    assert failed == KNOWN.get(("trio", how), {}).keys()


@pytest.mark.parametrize("how", ["as it is", "open_file", "install", "install, all"])
def test_anyio_file_tests_pass(sources: Sources, how: str) -> None:
    files = ("tests/test_fileio.py", "tests/test_tempfile.py", "tests/streams/test_file.py")
    failed = run_suite(sources, f"anyio-{version('anyio')}", how, "-p", "no:pytest_trio", "-p", "no:trio", *files)
    assert failed == KNOWN.get(("anyio", how), {}).keys()


@pytest.mark.parametrize("how", ["as it is", "install", "install, all", "integration"])
def test_starlette_tests_of_files_pass(sources: Sources, how: str) -> None:
    files = ("tests/test_responses.py", "tests/test_staticfiles.py", "tests/test_formparsers.py", "tests/test_requests.py")
    failed = run_suite(sources, f"starlette-{STARLETTE}", how, "-p", "no:pytest_trio", "-p", "no:trio", "-p", "no:timeout", *files)
    assert failed == KNOWN.get(("starlette", how), {}).keys()
