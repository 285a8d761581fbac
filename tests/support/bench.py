"""The program `bench`, and other builds for it to compare with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import trio_aio
from trio_aio._native import _ext

SMALL = ("--quick", "--rounds", "1", "--seconds", "0.02", "--size", "8")


def bench(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trio_aio", "bench", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def environment(folder: Path, *paths: Path) -> Path:
    """Return a new environment, whose packages are what `paths` contain."""
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys._base_executable)
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys._base_executable).parent}\n")
    (site / "paths.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder


def copy_of_trio_aio(folder: Path) -> Path:
    """Return a folder with a copy of this package, without its tools."""
    copied = folder / "trio_aio"
    shutil.copytree(Path(trio_aio.__file__).parent, copied, ignore=shutil.ignore_patterns("_tools", "__pycache__"))
    # An editable install keeps the extension module elsewhere.
    extension = Path(_ext.__file__)
    shutil.copy(extension, copied / "_native" / extension.name)
    return folder
