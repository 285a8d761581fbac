"""The wheel of this tree, as a user would build it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*arguments: str | Path) -> str:
    """Run a program that has to succeed, and return what it printed."""
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(folder: Path) -> Path:
    """Make a new environment, and return its Python."""
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin" / "python"


def build_wheel(folder: Path) -> Path:
    """Build an sdist in a folder, and a wheel from it. Return the wheel; "environment" in the same folder is what built it."""
    backend = "from scikit_build_core.build import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    python = make_environment(folder / "environment")
    run(python, *PIP, "install", "scikit-build-core>=1.0", "cffi>=2.1")
    done = subprocess.run([python, "-c", backend, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run(python, *PIP, "wheel", "--no-deps", "--wheel-dir", folder, folder / done.stdout.split()[-1])
    (built,) = folder.glob("*.whl")
    return built
