"""The sdist and the wheel that is built from it, installed in a new environment."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest

from ..support.wheel import PIP, build_wheel, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, and a wheel from it."""
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_sdist_builds_one_abi3_wheel_with_types_and_no_sources(wheel: Path) -> None:
    assert re.fullmatch(r"trio_aio-[\d.]+-cp310-abi3-\w*linux\w*\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"trio_aio/py.typed", "trio_aio/_native/_ext.pyi", "trio_aio/_native/_ext.abi3.so"} <= names
    assert not [name for name in names if name.endswith((".c", ".h", ".txt")) and "dist-info" not in name]


def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    python = wheel.parent / "environment" / "bin" / "python"
    run(python, *PIP, "install", wheel)
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
