"""The runner that repeats the suite on a busy machine, with small suites of its own."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PASSING = "def test_passes(): pass\n"
FAILS_WITH_SEED_8 = "def test_fails(request): assert request.config.getoption('--hypothesis-seed') != '8'\n"
DIES = "import os\ndef test_dies(): os._exit(3)\n"
# It waits for ever on a pipe, and says on another who it is.
WAITS = """
import os
def test_waits():
    with open("started", "w") as file:
        file.write(str(os.getpid()))
    with open("never"):
        pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Callable[[str], Path]:
    """Return what makes a suite of one file, in a folder of its own."""

    def make(tests: str) -> Path:
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "test_small.py").write_text(tests)
        return tmp_path

    return make


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.under_load", "--keep-page-cache", "--seed", "7", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def under_load(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the suite without a load, which other tests would feel; return the runner's exit status and what it printed."""
    with start(folder, "--busy", "0", *arguments) as runner:
        output, errors = runner.communicate()
    assert not errors
    return runner.returncode, output


def load_of(runner: int) -> list[int]:
    """Return the busy processes of a runner: they know its number."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if b"prctl" in command and command.endswith(f"\0{runner}\0".encode()):
            found.append(int(folder.name))
    return found


def test_under_load_passing_suite_succeeds(suite: Callable[[str], Path]) -> None:
    status, output = under_load(suite(PASSING), "--runs", "2")
    assert status == 0
    assert re.findall(r"run (\d) of 2: seed (\d): \d+ s: 1 passed: loadavg \d", output) == [("1", "7"), ("2", "8")]
    assert output.endswith("2 runs, 0 with failures\n")


def test_under_load_failing_test_is_listed_with_its_seed_and_command(suite: Callable[[str], Path]) -> None:
    folder = suite(PASSING + FAILS_WITH_SEED_8)
    status, output = under_load(folder, "--runs", "3")
    assert status == 1
    assert "3 runs, 1 with failures\n" in output
    assert "test_small.py::test_fails\n    failed 1 of 3 times, with seeds 8\n" in output
    assert "test_passes" not in output
    assert "assert '8' != '8'" in (folder / "build/under-load/8.txt").read_text()
    (command,) = re.findall(r"again: (.*)", output)
    again = subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True, check=False)
    assert again.returncode == pytest.ExitCode.TESTS_FAILED, again.stdout + again.stderr


def test_under_load_death_of_pytest_is_reported_with_the_test_that_ran(suite: Callable[[str], Path]) -> None:
    status, output = under_load(suite(PASSING + DIES), "--runs", "1")
    assert status == 1
    assert "seed 7: died with status 3 in test_small.py::test_dies\n" in output
    assert "test_small.py::test_dies\n    failed 1 of 1 times" in output


def test_under_load_death_of_a_worker_is_reported(suite: Callable[[str], Path]) -> None:
    status, output = under_load(suite(PASSING + DIES), "--runs", "1", "--", "-n", "1")
    assert status == 1
    assert "test_small.py::test_dies\n    failed 1 of 1 times" in output


@pytest.mark.parametrize("tests", ["", "import nothing_of_this_name\n"], ids=["no test", "no import"])
def test_under_load_suite_without_a_result_fails(suite: Callable[[str], Path], tests: str) -> None:
    status, output = under_load(suite(tests), "--runs", "1")
    assert status == 1
    assert "1 runs, 1 with failures\n" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_under_load_signal_ends_the_load(suite: Callable[[str], Path], number: int) -> None:
    folder = suite(WAITS)
    os.mkfifo(folder / "started")
    os.mkfifo(folder / "never")
    with start(folder, "--busy", "2") as runner:
        waiting = int((folder / "started").read_text())
        busy = load_of(runner.pid)
        assert len(busy) == 2
        watched = [os.pidfd_open(pid) for pid in [*busy, waiting]]
        runner.send_signal(number)
        output, _ = runner.communicate()
    try:
        assert runner.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
        if number == signal.SIGKILL:  # pytest gets no signal, and cannot know
            os.kill(waiting, signal.SIGKILL)
        for each in watched:
            wait_until_it_ends(each)
    finally:
        for each in watched:
            os.close(each)
    assert "died" not in output


def wait_until_it_ends(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000), "a process of the load is still there"
