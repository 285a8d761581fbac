"""The extension and the Python code belong together: a clone that was updated, and not built again, says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import trio_aio
from trio_aio._native import _ext

PACKAGE = Path(trio_aio.__file__).parent


def imported(folder: Path) -> subprocess.CompletedProcess[str]:
    """Import `trio_aio` from a folder, without the import hook of editable packages."""
    program = f"import sys; sys.path[:0] = [{str(folder)!r}, {sysconfig.get_path('purelib')!r}]; import trio_aio; print(trio_aio.__file__)"
    return subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the package, with the extension that is in use and the declarations that it was built from."""
    shutil.copytree(PACKAGE, tmp_path / "trio_aio", ignore=shutil.ignore_patterns("__pycache__"))
    native = tmp_path / "trio_aio" / "_native"
    assert _ext.__file__ is not None
    shutil.copy(_ext.__file__, native)
    return native


def test_import_with_the_declarations_of_the_extension_works(copy: Path) -> None:
    assert imported(copy.parents[1]).stdout.startswith(str(copy.parent))


def test_import_of_python_code_newer_than_the_extension_says_what_to_do(copy: Path) -> None:
    with (copy / "native.cdef.txt").open("a") as declarations:
        declarations.write("int taio_something_new(void);\n")
    assert imported(copy.parents[1]).stderr.endswith(
        "ImportError: the extension of trio_aio is older than the Python code: run `make env`\n"
    )


def test_import_of_an_installed_package_compares_nothing(copy: Path) -> None:
    (copy / "native.cdef.txt").unlink()
    assert imported(copy.parents[1]).stdout.startswith(str(copy.parent))
