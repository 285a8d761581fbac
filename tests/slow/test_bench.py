"""`python -m trio_aio bench`: every row runs, with small files and short rounds.

No test judges a figure: the machine may be busy. What is checked is that figures are there, that ratios are ratios of these figures,
and that other builds are really other builds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_aio
from trio_aio._tools.bench.rows import ROWS

from ..support.bench import SMALL, bench, copy_of_trio_aio, environment

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.slow

REASONS = ("not installed", "caio has no", "cannot be had here", "not on the PATH")

NAMES = [row.name for row in ROWS]

# Rows that one run of the program measures.
TOGETHER = 6


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns the output of the run with a row. There is one run for every few rows: all take a minute."""
    ran: dict[int, dict[str, Any]] = {}

    def output(name: str) -> dict[str, Any]:
        group = NAMES.index(name) // TOGETHER
        if group not in ran:
            folder = tmp_path_factory.mktemp("bench")
            names = NAMES[group * TOGETHER : (group + 1) * TOGETHER]
            done = bench(folder, *SMALL, "--json", *(f"--only={name}" for name in names))
            assert done.returncode == 0, done.stderr
            assert not list(folder.iterdir())
            ran[group] = json.loads(done.stdout)
            assert [row["row"] for row in ran[group]["rows"]] == names
        return ran[group]

    return output


@pytest.fixture(params=NAMES)
def row(request: pytest.FixtureRequest, outputs: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    (found,) = (row for row in outputs(request.param)["rows"] if row["row"] == request.param)
    result: dict[str, Any] = found
    return result


def test_bench_with_json_says_what_was_measured_and_where(outputs: Callable[[str], dict[str, Any]]) -> None:
    output = outputs(NAMES[0])
    assert list(output) == [
        "version",
        "kernel",
        "machine",
        "cpus",
        "python",
        "packages",
        "folder",
        "rounds",
        "seconds",
        "large_bytes",
        "written_bytes",
        "beside",
        "rows",
    ]
    assert (output["rounds"], output["seconds"], output["large_bytes"], output["beside"]) == (1, 0.02, 8 << 20, [])


def test_bench_of_row_measures_each_contender_or_says_why_not(row: dict[str, Any]) -> None:
    assert set(row) == {"row", "title", "piece_bytes", "tasks", "contenders", "wanted", "better_peers", "beside"}
    for each in row["contenders"]:
        assert set(each) == {
            "name",
            "loop",
            "ours",
            "build",
            "rounds",
            "rate",
            "cpu_seconds",
            "checkpoints",
            "late_seconds",
            "late_seconds_beside",
            "peak_bytes",
            "waited_for_processor",
            "left_out",
            "failed",
        }
        if each["rounds"] == 0:
            assert any(words in each["left_out"] for words in REASONS), each
            continue
        assert (each["failed"], each["left_out"]) == (False, None)
        if not each["name"].startswith("an idle loop"):
            assert each["rate"]["low"] == each["rate"]["median"] > 0
            assert each["cpu_seconds"]["median"] > 0
        if each["loop"] is not None:
            assert 0 <= each["late_seconds"]["p99"] <= each["late_seconds"]["max"]


def test_bench_of_row_judges_each_target_or_says_why_not(row: dict[str, Any]) -> None:
    for wanted in row["wanted"]:
        assert (wanted["at_least"] is None) != (wanted["at_most"] is None)
        if wanted["reached"] is None:
            assert wanted["not_known_because"]
        elif wanted["at_least"] is not None:
            assert wanted["reached"] == (wanted["found"]["median"] >= wanted["at_least"])
        else:
            assert wanted["reached"] == (wanted["found"]["median"] <= wanted["at_most"])


def test_bench_without_json_prints_table(tmp_path: Path) -> None:
    done = bench(tmp_path, *SMALL, "--only", "cached-1")
    assert done.returncode == 0, done.stderr
    for words in ("cached-1: pread(4096), cached, one task", "trio.open_file", "reached: trio_aio, rate at least 20.0 times"):
        assert words in done.stdout.replace("NOT REACHED", "reached")
    assert not list(tmp_path.iterdir())


def test_bench_with_json_shows_progress_on_stderr(tmp_path: Path) -> None:
    done = bench(tmp_path, *SMALL, "--only", "append", "--json", FORCE_COLOR="1")
    json.loads(done.stdout)
    assert "append: " in done.stderr


def test_bench_without_peers_leaves_them_out(tmp_path: Path) -> None:
    hidden, folder = tmp_path / "hidden", tmp_path / "folder"
    hidden.mkdir()
    folder.mkdir()
    for name in ("caio", "aiofile", "aiofiles"):
        (hidden / f"{name}.py").write_text("raise ImportError('not here')")
    done = bench(folder, *SMALL, "--only", "cached-16", "--json", PYTHONPATH=str(hidden))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    missing = {each["name"] for each in row["contenders"] if each["left_out"] and "not installed" in each["left_out"]}
    assert missing == {"aiofile", "aiofiles", "caio linux_aio", "caio linux_uring", "caio thread_aio"}
    rate = row["wanted"][0]
    assert (rate["reached"], rate["against"]) == (None, None)
    assert "caio linux_uring" in rate["not_known_because"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_bench_ended_by_signal_removes_its_files(number: int, status: int, on_filesystem: Callable[[str], Path], tmp_path: Path) -> None:
    # In memory: a contender that is killed inside a sync ends only when the disk is done. The file must not grow until memory is full.
    folder = on_filesystem("tmpfs")
    command = [sys.executable, "-m", "trio_aio", "bench", str(folder), "--only", "names-write", "--seconds", "3600", "--size", "8"]
    said = tmp_path / "stderr"
    with said.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as program:
        # Until a contender has made its file.
        while not list(folder.glob("*/*.*")):
            assert program.poll() is None, said.read_text()
            os.sched_yield()
        while program.poll() is None:
            program.send_signal(number)
            # Python drops the exception of a signal that comes inside a finalizer. A user then presses Ctrl-C again.
            with suppress(subprocess.TimeoutExpired):
                program.wait(20)
        assert program.returncode == status, said.read_text()
    assert not list(folder.iterdir())


# ---- other builds


def test_bench_beside_same_interpreter_compares_contenders_of_ours(tmp_path: Path) -> None:
    done = bench(tmp_path, *SMALL, "--only", "cached-16", "--json", "--beside", f"same={sys.executable}")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    (build,) = output["beside"]
    assert (build["name"], build["python"]) == ("same", sys.executable)
    assert build["folder"] == str(Path(trio_aio.__file__).parent)
    (row,) = output["rows"]
    contenders = {each["name"]: each for each in row["contenders"]}
    assert [name for name, each in contenders.items() if each["build"] == "same"] == ["trio_aio [same]", "trio_aio (asyncio) [same]"]
    assert [each["ours"] for each in row["beside"]] == ["trio_aio", "trio_aio (asyncio)"]
    for each in row["beside"]:
        mine, other = contenders[each["ours"]], contenders[f"{each['ours']} [same]"]
        assert each["build"] == "same"
        assert each["rate"]["median"] == mine["rate"]["median"] / other["rate"]["median"]
        assert each["cpu"]["median"] == mine["cpu_seconds"]["median"] / other["cpu_seconds"]["median"]


def test_bench_beside_environment_measures_its_trio_aio(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    folder.mkdir()
    copied = copy_of_trio_aio(source) / "trio_aio"
    # This build fails where the other one works.
    (copied / "_files" / "positional.py").write_text("raise ImportError('the other build')")
    other = environment(tmp_path / "other", source, Path(trio.__file__).parent.parent)
    done = bench(folder, *SMALL, "--only", "cached-1", "--beside", f"before={other}")
    assert done.returncode == 2
    assert "ImportError: the other build" in done.stderr

    shutil.copy(Path(trio_aio.__file__).parent / "_files" / "positional.py", copied / "_files" / "positional.py")
    done = bench(folder, *SMALL, "--only", "cached-1", "--json", "--beside", f"before={other}")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["beside"][0]["folder"] == str(copied)
    assert [each["failed"] for each in output["rows"][0]["contenders"]] == [False] * len(output["rows"][0]["contenders"])
