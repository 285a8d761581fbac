"""Run the suite many times on a machine that is kept busy: ``python -m tests.under_load --runs 20``, or ``make test-under-load N=20``.

A test that passes only on a quiet machine fails for everybody else. So one busy process for each CPU runs beside the suite, at the same
priority, and, as root, the page cache is dropped every second. At the end come all tests that failed at least once, how often, and the
command that repeats each with its seed (Hypothesis takes it; no other test is random). Status 1 if any failed or a run died.
What pytest printed is in ``build/under-load/SEED.txt`` for each run that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HANGS = 300  # seconds for one test: a busy machine needs longer
RUN_HANGS = 3600  # seconds for one run
OUTPUT = Path("build/under-load")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

# A runner that is killed takes its load with it: the kernel then sends SIGKILL (PR_SET_PDEATHSIG).
BUSY = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the runner ends us
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1 << 20):
        pass
"""


# ---- inside pytest, as a plugin: `-p tests.under_load --record FILE`


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--record``: a file to which each test's start and failure is written at once, so that it is known where a run died."""
    parser.addoption("--record", help="write down which tests start and fail")


def pytest_configure(config: pytest.Config) -> None:
    """Record, in the process that hears of all tests."""
    if config.getoption("record") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("record")))


class Recorder:
    """Writes down what happens to the tests, a JSON list for each event."""

    def __init__(self, path: str) -> None:
        self._file: int = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._counts: Counter[str] = Counter()

    def _write(self, *event: object) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.when == "call" or report.skipped:
            self._counts[report.outcome] += 1
        if report.failed:
            self._write("failed", report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write("finished", nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("failed", report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._write("ended", dict(self._counts))


# ---- the runner


class Run:
    """One run of the suite, as its record tells it."""

    def __init__(self, seed: int, status: int, seconds: float, record: Path) -> None:
        self.seed: int = seed
        self.seconds: float = seconds
        self.failed: list[str] = []
        self.counts: dict[str, int] = {}
        running: dict[str, None] = {}
        ended = False
        for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
            event, value = json.loads(line)
            if event == "started":
                running[value] = None
            elif event == "finished":
                running.pop(value, None)
            elif event == "failed" and value not in self.failed:
                self.failed.append(value)
            elif event == "ended":
                ended, self.counts = True, value
        self.died: str | None = None
        if not ended or status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self.died = f"died with status {status}" + "".join(f" in {name}" for name in running)
            self.failed += [name for name in running if name not in self.failed]
        elif status and not self.failed:
            self.died = f"failed with status {status}, but no test did"

    @property
    def good(self) -> bool:
        return not self.failed and self.died is None


@contextlib.contextmanager
def _load(busy: int, *, keep_page_cache: bool) -> Iterator[None]:
    """Keep processors busy and the page cache empty."""
    processes = []
    over = threading.Event()
    dropper = threading.Thread(target=_drop_page_cache, args=(over,), name="page cache")
    try:
        processes += [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(busy)]
        if not keep_page_cache:
            if os.access(DROP_CACHES, os.W_OK):
                dropper.start()
            else:
                print("the page cache is not dropped: that needs root")
        yield
    finally:
        over.set()
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        if dropper.ident is not None:
            dropper.join()


def _drop_page_cache(over: threading.Event) -> None:
    while not over.wait(1):
        DROP_CACHES.write_text("1")


def _pytest(seed: int, arguments: list[str], output: Path) -> Run:
    record = output.with_suffix(".record")
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "tests.under_load", "--record", str(record.absolute())]
    command += ["-o", f"faulthandler_timeout={HANGS}", "--hypothesis-profile=default", f"--hypothesis-seed={seed}", *arguments]
    start = time.monotonic()
    # Nothing that an earlier run found may be tried first: then the seed would not repeat it.
    with output.open("wb") as file, tempfile.TemporaryDirectory(prefix="hypothesis-") as found:
        environment = os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": found}
        # In a session of its own, so that all it started can be ended with it.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            status = process.wait(RUN_HANGS)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        finally:
            _end(process)
    run = Run(seed, status, time.monotonic() - start, record)
    record.unlink(missing_ok=True)
    if run.good:
        output.unlink()
    return run


def _end(process: subprocess.Popen[bytes]) -> None:
    """End pytest and whatever it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _report(runs: list[Run]) -> int:
    """Print which tests failed, how often, and how to repeat them; return the exit status."""
    bad = [run for run in runs if not run.good]
    print(f"\n{len(runs)} runs, {len(bad)} with failures")
    failures: dict[str, list[Run]] = {}
    for run in bad:
        for name in run.failed:
            failures.setdefault(name, []).append(run)
    for name, where in sorted(failures.items(), key=lambda item: -len(item[1])):
        again = [sys.executable, "-m", "pytest", "--hypothesis-profile=default", f"--hypothesis-seed={where[0].seed}", name]
        print(f"{name}\n    failed {len(where)} of {len(runs)} times, with seeds {', '.join(str(run.seed) for run in where)}")
        print(f"    again: {shlex.join(again)}")
        loaded = [sys.executable, "-m", "tests.under_load", "--runs", "20", "--seed", str(where[0].seed), "--", name]
        print(f"    again, under load: {shlex.join(loaded)}")
    for run in bad:
        if run.died is not None:
            print(f"seed {run.seed}: {run.died}")
        print(f"seed {run.seed}: what it printed is in {OUTPUT / f'{run.seed}.txt'}")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.under_load", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how often (default: 20)")
    parser.add_argument("--seed", type=int, default=None, help="of the first run; the next has the next (default: another each time)")
    parser.add_argument("--busy", type=int, default=len(os.sched_getaffinity(0)), help="busy processes (default: one for each CPU)")
    parser.add_argument("--keep-page-cache", action="store_true", help="do not drop it")
    parser.add_argument("arguments", nargs="*", help="for pytest; put -- before them")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background ignores the one, and both should end the load
        signal.signal(number, signal.default_int_handler)
    first = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    OUTPUT.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    try:
        with _load(options.busy, keep_page_cache=options.keep_page_cache):
            for number in range(options.runs):
                run = _pytest(first + number, options.arguments, OUTPUT / f"{first + number}.txt")
                runs.append(run)
                counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(run.counts.items()))
                load = Path("/proc/loadavg").read_text(encoding="ascii").strip()
                words: list[Any] = [f"run {number + 1} of {options.runs}", f"seed {run.seed}", f"{run.seconds:.0f} s", counts or run.died]
                print(*words, f"loadavg {load}", sep=": ", flush=True)
    except KeyboardInterrupt:
        _report(runs)
        return 130
    return _report(runs)


if __name__ == "__main__":
    sys.exit(main())
