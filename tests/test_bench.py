"""`python -m trio_aio bench`: every row runs, for real and small; what it says is what it measured."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._bench import measure, rows
from trio_aio._bench.children import Failed
from trio_aio._bench.contenders import Contender
from trio_aio._bench.measure import Load, Measured, Work
from trio_aio._bench.report import Result, RowResult, as_json
from trio_aio._bench.rows import ROWS, Row, Wanted

from ._support import BLOCK, attempts, cached_pages, make_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = ("--quick", "--rounds", "1", "--seconds", "0.02", "--size", "8")
REASONS = ("this version of trio_aio", "not installed", "caio has no", "cannot be had here", "not on the PATH")
NAMES = [row.name for row in ROWS]


def bench(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trio_aio", "bench", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all rows once."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(folder, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    output: dict[str, Any] = json.loads(done.stdout)
    return output


@pytest.fixture(params=NAMES)
def row(request: pytest.FixtureRequest, everything: dict[str, Any]) -> dict[str, Any]:
    (found,) = (row for row in everything["rows"] if row["row"] == request.param)
    result: dict[str, Any] = found
    return result


@pytest.mark.slow
def test_the_output_says_what_was_measured_and_where(everything: dict[str, Any]) -> None:
    assert list(everything) == [
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
        "rows",
    ]
    assert [row["row"] for row in everything["rows"]] == NAMES
    assert (everything["rounds"], everything["seconds"], everything["large_bytes"]) == (1, 0.02, 8 << 20)


@pytest.mark.slow
def test_every_contender_was_measured_or_is_said_to_be_missing(row: dict[str, Any]) -> None:
    assert set(row) == {"row", "title", "piece_bytes", "tasks", "contenders", "wanted", "better_peers"}
    for each in row["contenders"]:
        assert set(each) == {
            "name",
            "loop",
            "ours",
            "rounds",
            "rate",
            "cpu_seconds",
            "late_seconds",
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


@pytest.mark.slow
def test_what_is_wanted_was_reached_or_not_or_not_known_for_a_reason(row: dict[str, Any]) -> None:
    for wanted in row["wanted"]:
        assert (wanted["at_least"] is None) != (wanted["at_most"] is None)
        if wanted["reached"] is None:
            assert wanted["not_known_because"]
        elif wanted["at_least"] is not None:
            assert wanted["reached"] == (wanted["found"]["median"] >= wanted["at_least"])
        else:
            assert wanted["reached"] == (wanted["found"]["median"] <= wanted["at_most"])


@pytest.mark.slow
def test_a_table_says_all_of_it_in_words(tmp_path: Path) -> None:
    done = bench(tmp_path, *SMALL, "--only", "cached-1")
    assert done.returncode == 0, done.stderr
    for words in ("cached-1: pread(4096), cached, one task", "trio.open_file", "reached: trio_aio, rate at least 20.0 times"):
        assert words in done.stdout.replace("NOT REACHED", "reached")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_progress_goes_to_stderr_only(tmp_path: Path) -> None:
    done = bench(tmp_path, *SMALL, "--only", "append", "--json", FORCE_COLOR="1")
    json.loads(done.stdout)
    assert "append: " in done.stderr


def test_an_unknown_row_is_refused_and_the_rows_are_named(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "cached-1", "--only", "fast")
    assert done.returncode == 2
    assert "there is no row 'fast'" in done.stderr
    assert ", ".join(NAMES) in done.stderr


def test_without_rich_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('not here')")
    done = bench(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'trio-aio[bench]'" in done.stderr


@pytest.mark.slow
def test_peers_that_are_not_installed_are_left_out(tmp_path: Path) -> None:
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


def test_too_small_a_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = bench(tmp_path, "--size", str(1 << 30))
    assert done.returncode == 2
    assert "MiB free" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("--rounds", "0"), ("--seconds", "-1"), ("--seconds", "inf"), ("--size", "x")])
def test_numbers_that_mean_nothing_are_refused(option: str, value: str, tmp_path: Path) -> None:
    done = bench(tmp_path, option, value)
    assert done.returncode == 2
    assert f"argument {option}: invalid positive_number value" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_files_behind(number: int, status: int, on_filesystem: Callable[[str], Path]) -> None:
    # In memory. A contender that is killed inside fdatasync ends only when the disk is done, and bench rightly waits for it.
    folder = on_filesystem("tmpfs")
    command = [sys.executable, "-m", "trio_aio", "bench", str(folder), "--only", "append", "--seconds", "3600", "--size", "8"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        while not list(folder.glob("*/*.*")):  # a contender is at work
            assert program.poll() is None, program.communicate()
            os.sched_yield()
        program.send_signal(number)
        assert program.wait() == status
    assert not list(folder.iterdir())


# ---- how it measures


def load(path: Path, **options: Any) -> Load:
    return Load(str(path), 16 * BLOCK, BLOCK, 1, 0.01, 0, **options)


def test_a_whole_load_has_each_piece_once_in_order(tmp_path: Path) -> None:
    work = Work(load(tmp_path, whole=True))
    for phase in work.phases():
        with phase:
            assert list(phase.offsets()) == list(range(0, 16 * BLOCK, BLOCK))
    assert work.measured.operations == 16


def test_a_cold_load_is_out_of_the_cache_and_reads_nothing_twice(disk: Path) -> None:
    path, _ = make_file(disk, 16 * BLOCK)
    for _ in attempts("three phases that began with no page cached"):
        cached = []
        for phase in Work(load(path, cold=True)).phases():
            with phase:
                cached.append(cached_pages(path))
                offsets = list(phase.offsets())
            assert sorted(offsets) == list(range(0, 16 * BLOCK, BLOCK)) != offsets
            path.read_bytes()  # the next phase has something to evict
        if not any(cached):
            break
    assert cached == [0, 0, 0]


def test_a_hot_load_ends_when_its_time_is_over(tmp_path: Path) -> None:
    work = Work(load(tmp_path))
    began = time.perf_counter()
    for phase in work.phases():
        with phase:
            count = sum(1 for _ in phase.offsets())  # ends by the timer alone
        assert phase.operations == count >= 1
    assert time.perf_counter() - began >= 0.01 * (measure.WARM_UP + 1 + measure.LATENESS)
    assert work.measured.seconds > 0
    assert work.measured.cpu > 0


def test_a_hot_load_starts_again_from_its_first_offset_until_it_is_over(tmp_path: Path) -> None:
    for phase in Work(Load(str(tmp_path), 16 * BLOCK, BLOCK, 1, 3600, 0)).phases():
        with phase:
            offsets = phase.offsets()
            taken = list(itertools.islice(offsets, 40))
            phase.over = True
            assert list(offsets) == []
        assert sorted(taken[:16]) == list(range(0, 16 * BLOCK, BLOCK))
        assert taken == (3 * taken[:16])[:40]
        assert phase.operations == 40


def test_tasks_share_the_offsets_of_a_phase(tmp_path: Path) -> None:
    for phase in Work(load(tmp_path, whole=True)).phases():
        with phase:
            one, other = phase.offsets(), phase.offsets()
            taken = [offset for pair in zip(one, other, strict=True) for offset in pair]
        assert taken == list(range(0, 16 * BLOCK, BLOCK))


def test_batches_have_all_offsets(tmp_path: Path) -> None:
    for phase in Work(load(tmp_path, whole=True)).phases():
        with phase:
            assert list(itertools.chain.from_iterable(phase.batches(5))) == list(range(0, 16 * BLOCK, BLOCK))


def test_a_stall_makes_every_tick_late_that_fell_due_in_it(tmp_path: Path) -> None:
    async def stalling(work: Work) -> None:
        async def task(phase: measure.Phase) -> None:
            await anyio.sleep(0.002)
            time.sleep(0.02)  # noqa: ASYNC251 it is what a load must not do
            await anyio.sleep(0.002)

        await measure.drive(work, task)

    import anyio

    work = Work(load(tmp_path, whole=True))
    anyio.run(stalling, work, backend="trio")
    assert sum(late >= 0.010 for late in work.measured.late) >= 9
    assert max(work.measured.late) >= 0.018


# ---- what it makes of it


def result(name: str, *rates: float, ours: bool = False, cpu: float = 0.5, late: tuple[float, ...] = ()) -> Result:
    rounds = [Measured(operations=int(rate * 2), seconds=2.0, cpu=cpu * 2, late=list(late)) for rate in rates]
    return Result(Contender(name, print, ours=ours), rounds)


def row_of(*results: Result, wanted: tuple[Wanted, ...] = ()) -> RowResult:
    return RowResult(Row("row", "title", tuple(each.contender for each in results), wanted), BLOCK, list(results))


def test_ratios_are_taken_round_by_round_against_the_quickest() -> None:
    wanted = (Wanted("rate", 2, ("slow", "quick"), "ours"), Wanted("cost", 0.4, ("quick",), "ours"))
    both = row_of(result("ours", 400, 100, 200, ours=True), result("slow", 1, 1, 1), result("quick", 200, 50, 50), wanted=wanted)
    rate, cost = both.outcomes()
    assert rate.against == "quick"
    assert rate.found is not None
    assert (rate.found.low, rate.found.median, rate.found.high, rate.reached) == (2, 2, 4, True)
    assert cost.found is not None
    assert (cost.found.median, cost.reached) == (0.5, False)


def test_cpu_time_is_compared_with_the_quickest_and_not_the_cheapest() -> None:
    wanted = (Wanted("cpu", 2 / 3, ("cheap", "quick"), "ours"),)
    compared = row_of(result("ours", 100, ours=True, cpu=0.5), result("cheap", 10, cpu=0.001), result("quick", 100, cpu=1.0), wanted=wanted)
    (cpu,) = compared.outcomes()
    assert (cpu.against, cpu.reached) == ("quick", True)


def test_peers_that_do_better_are_named() -> None:
    compared = row_of(result("ours", 100, ours=True), result("quicker", 150), result("slower", 50, cpu=0.01))
    assert compared.winners() == [
        ("faster", "ours", "quicker", 1.5),
        ("less CPU", "ours", "quicker", 1.5),
        ("less CPU", "ours", "slower", 25.0),
    ]


def test_a_contender_that_failed_is_said_to_have_failed() -> None:
    broken = result("ours", ours=True)
    broken.failed = Failed("OSError: no")
    compared = row_of(broken, wanted=(Wanted("rate", 1, ("peer",), "ours"),))
    assert as_json(compared)["contenders"][0] | {"failed": True, "left_out": "OSError: no"} == as_json(compared)["contenders"][0]
    (rate,) = compared.outcomes()
    assert (rate.reached, rate.why_not) == (None, "OSError: no")


def test_rows_want_what_their_contenders_can_give() -> None:
    for each in rows.ROWS:
        names = [contender.name for contender in each.contenders]
        assert len(set(names)) == len(names)
        for wanted in each.all_wanted:
            assert {wanted.ours, *wanted.against} <= set(names)
