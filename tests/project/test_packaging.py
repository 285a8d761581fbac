"""What is installed: one abi3 wheel that needs no other library, also from the sdist; and off Linux a clear ImportError."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trio_aio
from trio_aio._native import _ext

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> str:
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_off_linux_the_import_says_why() -> None:
    program = "import sys; sys.platform = 'darwin'; import trio_aio"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: trio_aio works on Linux only.*darwin", done.stderr)


def test_everything_public_is_there_and_has_a_docstring() -> None:
    for name in trio_aio.__all__:
        assert getattr(trio_aio, name).__doc__


def test_the_extension_needs_only_libc() -> None:
    # The loader's own list would do, but nothing guarantees readelf: the names stand in the file.
    needed = set(re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)(?=\0)", Path(_ext.__file__).read_bytes()))
    assert {b"libc.so.6"} <= needed <= {b"libc.so.6", b"libpthread.so.0"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and a wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    backend = "from scikit_build_core.build import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "scikit-build-core>=1.0", "cffi>=2.1")
    done = subprocess.run([python, "-c", backend, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run(
        python,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--wheel-dir",
        folder,
        folder / done.stdout.split()[-1],
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_sdist_builds_one_abi3_wheel_with_types_and_no_sources(wheel: Path) -> None:
    assert re.fullmatch(r"trio_aio-[\d.]+-cp310-abi3-\w*linux\w*\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"trio_aio/py.typed", "trio_aio/_native/_ext.pyi", "trio_aio/_native/_ext.abi3.so"} <= names
    assert not [name for name in names if name.endswith((".c", ".h", ".txt")) and "dist-info" not in name]


@pytest.mark.slow
def test_the_wheel_works_installed(wheel: Path, tmp_path: Path) -> None:
    python = wheel.parent / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    program = """
import trio, trio_aio
async def main():
    async with trio_aio.open_aio("file", "w+b") as file:
        await file.write(b"works")
        await file.fsync()
        print((await file.pread(10, 0)).decode(), trio_aio.current_context().engine)
trio.run(main)
"""
    done = subprocess.run(
        [python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.stdout.split() == ["works", "aio"], done.stderr


def test_the_quickstart_runs(tmp_path: Path) -> None:
    output = run(sys.executable, ROOT / "examples" / "quickstart.py", "--size", "16", "--directory", tmp_path)
    assert "cancelled=True, still in flight: 0" in output
