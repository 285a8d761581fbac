"""What the suite itself promises: what it says at the end, and that a test which changes the whole host is alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_skipped(number):
    pytest.skip("needs a moon")

@pytest.mark.skip(reason="needs a sun")
def test_never(): pass

@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_slow(number): pass

def test_quick(): pass

def test_limited(file_size_limit): print("x" * 100)
"""


def run_suite(folder: Path, *arguments: str, output: int | IO[bytes] = subprocess.PIPE) -> str:
    """Run a small suite with our conftest, which has to pass; return what pytest printed."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow: as ours\n  alone: as ours\n  backends: as ours\n")
    (folder / "test_small.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRIO_AIO_HOST_IS_LOCKED": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_summary_groups_skips_and_ends_with_the_slow_tests_left_out(tmp_path: Path, workers: str) -> None:
    output = run_suite(tmp_path, "-m", "not slow", "-n", workers)
    assert "   3 needs a moon\n   1 needs a sun\n" in output
    assert output.endswith("2 slow tests were left out; `make test-all` runs all\n")


@pytest.mark.slow
def test_summary_without_left_out_tests_does_not_name_any(tmp_path: Path) -> None:
    assert "left out" not in run_suite(tmp_path)


@pytest.mark.slow
def test_output_longer_than_the_file_size_limit_is_written(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        output.write(bytes(100 << 10))
        output.flush()
        run_suite(tmp_path, "-v", "-k", "test_limited", output=output)
    assert b"test_limited PASSED" in (tmp_path / "output").read_bytes()


def lock_from_outside(how: int) -> None:
    """Try to enter as a test of another process does."""
    with open("/proc/sys/fs/aio-max-nr", "rb") as file:
        fcntl.flock(file, how | fcntl.LOCK_NB)


def test_running_test_blocks_tests_marked_alone() -> None:
    with pytest.raises(BlockingIOError):
        lock_from_outside(fcntl.LOCK_EX)


@pytest.mark.alone
def test_test_marked_alone_blocks_all_others() -> None:
    with pytest.raises(BlockingIOError):
        lock_from_outside(fcntl.LOCK_SH)
