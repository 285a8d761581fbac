"""The examples for pytest, run as a user would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "passed"), [("test_with_pytest_trio.py", 2), ("test_with_anyio.py", 2)])
def test_pytest_examples_pass(tmp_path: Path, name: str, passed: int) -> None:
    shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{passed} passed" in done.stdout, done.stdout + done.stderr
