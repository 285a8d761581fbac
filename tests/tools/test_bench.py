"""`python -m trio_aio bench`: its arguments, its loads and contenders, and what the figures mean. `tests/slow/` runs every row."""

from __future__ import annotations

import errno
import itertools
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

import trio_aio
from trio_aio._tools.bench import builds, measure
from trio_aio._tools.bench.children import Failed
from trio_aio._tools.bench.contenders import native, ours
from trio_aio._tools.bench.contenders.contender import Contender, opened
from trio_aio._tools.bench.contenders.minimal import Reads
from trio_aio._tools.bench.measure import Load, Measured, Work
from trio_aio._tools.bench.report import as_json
from trio_aio._tools.bench.results import Result, RowResult
from trio_aio._tools.bench.rows import ROWS, Row, Wanted, rows_named

from ..support.bench import bench, environment
from ..support.files import BLOCK, make_file
from ..support.page_cache import attempts, cached_pages
from ..support.programs import check


def test_bench_of_unknown_row_returns_2_and_names_rows(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "cached-1", "--only", "fast")
    assert done.returncode == 2
    assert "--only must name rows, not 'fast'" in done.stderr
    assert ", ".join(row.name for row in ROWS) in done.stderr


def test_name_of_a_group_chooses_its_rows() -> None:
    assert {row.name for row in rows_named("integrations")} == {row.name for row in ROWS if row.name.startswith("integrations-")}
    assert len(rows_named("integrations")) > 10
    assert [row.name for row in rows_named("lines")] == ["lines"]  # a row of that name, although there is lines-text
    assert rows_named("integration") == []


def test_bench_without_rich_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('not here')")
    done = bench(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'trio-aio[bench]'" in done.stderr


def test_bench_on_small_disk_returns_2_and_writes_nothing(tmp_path: Path) -> None:
    done = bench(tmp_path, "--size", str(1 << 30))
    assert done.returncode == 2
    assert "MiB free, not" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("--rounds", "0"), ("--seconds", "-1"), ("--seconds", "inf"), ("--size", "x")])
def test_bench_with_invalid_number_returns_2(option: str, value: str, tmp_path: Path) -> None:
    done = bench(tmp_path, option, value)
    assert done.returncode == 2
    assert f"argument {option}: invalid positive_number value" in done.stderr


# ---- other builds


def test_bench_beside_environment_without_trio_aio_returns_2(tmp_path: Path) -> None:
    done = bench(tmp_path, "--beside", f"before={environment(tmp_path / 'bare')}")
    assert done.returncode == 2
    assert "must have a trio_aio that bench can use" in done.stderr
    assert "No module named 'trio_aio'" in done.stderr


def test_bench_beside_missing_interpreter_returns_2(tmp_path: Path) -> None:
    done = bench(tmp_path, "--beside", f"before={tmp_path / 'none'}")
    assert done.returncode == 2
    assert "must be an interpreter that starts: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [(["before"], "must be NAME=PYTHON, not 'before'"), (["=python"], "must be NAME=PYTHON"), (["a=x", "a=y"], "names must differ: a, a")],
)
def test_bench_with_invalid_beside_returns_2(values: list[str], words: str, tmp_path: Path) -> None:
    done = bench(tmp_path, *(f"--beside={value}" for value in values))
    assert done.returncode == 2
    assert words in done.stderr


def test_command_of_this_build_ignores_current_folder_and_pythonpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trio_aio").mkdir()
    (tmp_path / "trio_aio" / "__init__.py").write_text("raise ImportError('from the wrong folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert builds.find("same", sys.executable).folder == builds.here().folder == str(Path(trio_aio.__file__).parent)


# ---- loads and phases


def load(path: Path, **options: Any) -> Load:
    return Load(str(path), 16 * BLOCK, BLOCK, 1, 0.01, 0, **options)


def test_offsets_of_whole_load_are_each_piece_once_in_order(tmp_path: Path) -> None:
    work = Work(load(tmp_path, whole=True))
    for phase in work.phases():
        with phase:
            assert list(phase.offsets()) == list(range(0, 16 * BLOCK, BLOCK))
    assert work.measured.operations == 16


def test_phases_of_cold_load_start_uncached_and_repeat_nothing(disk: Path) -> None:
    path, _ = make_file(disk, 16 * BLOCK)
    for _ in attempts("three phases that started with no page cached"):
        cached = []
        for phase in Work(replace(load(path, cold=True), seconds=600.0)).phases():  # the offsets end it, and not the clock
            with phase:
                cached.append(cached_pages(path))
                offsets = list(phase.offsets())
            assert sorted(offsets) == list(range(0, 16 * BLOCK, BLOCK)) != offsets
            # The next phase has something to evict.
            path.read_bytes()
        if not any(cached):
            break
    assert cached == [0, 0, 0]


def test_phases_of_hot_load_end_with_their_time(tmp_path: Path) -> None:
    work = Work(load(tmp_path))
    began = time.perf_counter()
    for phase in work.phases():
        with phase:
            # The timer alone ends it.
            count = sum(1 for _ in phase.offsets())
        assert phase.operations == count >= 1
    assert time.perf_counter() - began >= 0.01 * (measure.WARM_UP + 1 + measure.LATENESS)
    assert work.measured.seconds > 0
    assert work.measured.cpu > 0


def test_offsets_of_hot_load_repeat_until_phase_is_over(tmp_path: Path) -> None:
    for phase in Work(replace(load(tmp_path), seconds=3600)).phases():
        with phase:
            offsets = phase.offsets()
            taken = list(itertools.islice(offsets, 40))
            phase.over = True
            assert list(offsets) == []
        assert sorted(taken[:16]) == list(range(0, 16 * BLOCK, BLOCK))
        assert taken == (3 * taken[:16])[:40]
        assert phase.operations == 40


def test_offsets_taken_twice_are_shared(tmp_path: Path) -> None:
    for phase in Work(load(tmp_path, whole=True)).phases():
        with phase:
            one, other = phase.offsets(), phase.offsets()
            taken = [offset for pair in zip(one, other, strict=True) for offset in pair]
        assert taken == list(range(0, 16 * BLOCK, BLOCK))


def test_batches_of_whole_load_have_all_offsets(tmp_path: Path) -> None:
    for phase in Work(load(tmp_path, whole=True)).phases():
        with phase:
            assert list(itertools.chain.from_iterable(phase.batches(5))) == list(range(0, 16 * BLOCK, BLOCK))


def test_drive_with_stalling_task_counts_each_tick_due_meanwhile(tmp_path: Path) -> None:
    async def stalling(work: Work) -> None:
        async def task(phase: measure.Phase) -> None:
            await anyio.sleep(0.002)
            time.sleep(0.02)  # noqa: ASYNC251 - what a load must not do
            await anyio.sleep(0.002)

        await measure.drive(work, task)

    work = Work(load(tmp_path, whole=True))
    anyio.run(stalling, work, backend="trio")
    assert sum(late >= 0.010 for late in work.measured.late) >= 9
    assert max(work.measured.late) >= 0.018


def test_work_tells_when_ticks_begin_and_end(tmp_path: Path) -> None:
    async def one(work: Work) -> None:
        async def task(phase: measure.Phase) -> None:
            told.append(phase.kind.value)
            phase.operations += 1
            await anyio.lowlevel.checkpoint()

        await measure.drive(work, task)

    told: list[object] = []
    anyio.run(one, Work(load(tmp_path), told.append), backend="trio")
    assert told == ["warm-up", "rate", True, "lateness", False]


BYSTANDERS = """
import time
from trio_aio._tools.bench.bystander import bystanders

with bystanders() as idle:
    for kind in ("trio", "asyncio"):
        assert idle[kind].tick(False) == []
        for _ in range(2):
            late, length = [], 0.001
            while not late:  # it was too short for a tick
                assert idle[kind].tick(True) == []
                assert idle[kind].tick(True) == []
                time.sleep(length)
                late, length = idle[kind].tick(False), 2 * length
            assert min(late) >= 0
            print(kind)
"""


def test_bystander_ticks_between_begin_and_end() -> None:
    assert check([sys.executable, "-c", BYSTANDERS]).split() == ["trio", "trio", "asyncio", "asyncio"]


# ---- contenders


def preads_of_minimal(path: Path, offsets: list[int]) -> list[bytes | int | None]:
    """Return the bytes that the yardstick reads at `offsets`, by one task each and all at once, or the errno of a read that fails."""
    found: dict[int, bytes | int | None] = {}

    async def read(reads: Reads, offset: int) -> None:
        try:
            found[offset] = await reads.pread(BLOCK, offset)
        except OSError as error:
            found[offset] = error.errno

    async def read_all() -> None:
        with opened(str(path), os.O_RDONLY | os.O_DIRECT) as fd:
            reads = Reads(fd, len(offsets), BLOCK)
            async with reads.serving(), trio.open_nursery() as nursery:
                for offset in offsets:
                    nursery.start_soon(read, reads, offset)

    trio.run(read_all)
    return [found[offset] for offset in offsets]


def test_pread_of_minimal_returns_bytes_of_file(disk: Path) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    offsets = list(range(0, 64 * BLOCK, BLOCK))
    random.Random(1).shuffle(offsets)
    assert preads_of_minimal(path, offsets) == [data[offset : offset + BLOCK] for offset in offsets]


def test_pread_of_minimal_that_kernel_refuses_fails_alone(disk: Path) -> None:
    path, data = make_file(disk, 4 * BLOCK)
    assert preads_of_minimal(path, [0, -BLOCK, BLOCK]) == [data[:BLOCK], errno.EINVAL, data[BLOCK : 2 * BLOCK]]


def test_overwrite_of_whole_load_replaces_each_piece(disk: Path) -> None:
    path, data = make_file(disk, 16 * BLOCK)
    work = Work(load(path, whole=True, direct=True))
    anyio.run(ours.overwrite, work, backend="trio")
    written = path.read_bytes()
    assert written == written[:BLOCK] * 16 != data
    assert work.measured.operations == 16


# ---- what the figures mean


def result(name: str, *rates: float, ours: bool = False, cpu: float = 0.5) -> Result:
    rounds = [Measured(operations=int(rate * 2), seconds=2.0, cpu=cpu * 2) for rate in rates]
    return Result(Contender(name, print, ours=ours), rounds)


def row_of(*results: Result, wanted: tuple[Wanted, ...] = ()) -> RowResult:
    return RowResult(Row("row", "title", tuple(each.contender for each in results), wanted), BLOCK, list(results))


def test_outcomes_with_two_rivals_are_ratios_to_faster_by_round() -> None:
    wanted = (Wanted("rate", 2, ("slow", "quick"), "ours"), Wanted("cost", 0.4, ("quick",), "ours"))
    both = row_of(result("ours", 400, 100, 200, ours=True), result("slow", 1, 1, 1), result("quick", 200, 50, 50), wanted=wanted)
    rate, cost = both.outcomes()
    assert rate.against == "quick"
    assert rate.found is not None
    assert (rate.found.low, rate.found.median, rate.found.high, rate.reached) == (2, 2, 4, True)
    assert cost.found is not None
    assert (cost.found.median, cost.reached) == (0.5, False)


def test_outcomes_of_cpu_time_compare_with_fastest_not_cheapest() -> None:
    wanted = (Wanted("cpu", 2 / 3, ("cheap", "quick"), "ours"),)
    compared = row_of(result("ours", 100, ours=True, cpu=0.5), result("cheap", 10, cpu=0.001), result("quick", 100, cpu=1.0), wanted=wanted)
    (cpu,) = compared.outcomes()
    assert (cpu.against, cpu.reached) == ("quick", True)


def test_outcomes_of_lateness_are_what_goes_beyond_that_of_another_process() -> None:
    late = result("ours", 100, 100, ours=True)
    late.contender = replace(late.contender, loop="trio")
    late.rounds[0].late, late.rounds[0].beside = [0.001] * 99 + [0.005, 0.020], [0.001] * 99 + [0.002, 0.002]
    late.rounds[1].late, late.rounds[1].beside = [0.001] * 99 + [0.006, 0.014], [0.001] * 99 + [0.002, 0.002]
    p99, most = row_of(late).outcomes()
    assert p99.found is not None
    assert most.found is not None
    assert (round(p99.found.median, 6), p99.reached) == (0.0035, False)
    assert (round(most.found.median, 6), most.reached) == (0.018, False)
    late.rounds[1].beside[-1] = 0.012
    assert row_of(late).outcomes()[1].reached
    late.rounds[0].beside.clear()
    late.rounds[1].beside.clear()
    assert row_of(late).outcomes()[0].reached is None


def test_winners_are_peers_that_do_better() -> None:
    compared = row_of(result("ours", 100, ours=True), result("quicker", 150), result("slower", 50, cpu=0.01))
    assert compared.winners() == [
        ("faster", "ours", "quicker", 1.5),
        ("less CPU", "ours", "quicker", 1.5),
        ("less CPU", "ours", "slower", 25.0),
    ]


@pytest.mark.parametrize("contender", [native.PREAD_LOOP, native.PREADV_LOOP, native.BLOCKING_LOOP, *native.line_readers("rb")])
def test_winners_are_no_blocking_loops(contender: Contender) -> None:
    assert row_of(result("ours", 100, ours=True), Result(contender, result("", 1000, cpu=0.01).rounds)).winners() == []


def test_as_json_of_failed_contender_says_why() -> None:
    broken = result("ours", ours=True)
    broken.failed = Failed("OSError: no")
    compared = row_of(broken, wanted=(Wanted("rate", 1, ("peer",), "ours"),))
    assert as_json(compared)["contenders"][0] | {"failed": True, "left_out": "OSError: no"} == as_json(compared)["contenders"][0]
    (rate,) = compared.outcomes()
    assert (rate.reached, rate.why_not) == (None, "OSError: no")


def test_rows_have_unique_contenders_and_targets_among_them() -> None:
    for each in ROWS:
        names = [contender.name for contender in each.contenders]
        assert len(set(names)) == len(names)
        for wanted in each.all_wanted:
            assert {wanted.ours, *wanted.against} <= set(names)
            if wanted.instead is not None:
                assert (wanted.instead.ours, len(wanted.instead.against)) == (wanted.ours, 1)
                assert wanted.instead.against[0] in names


def limited(minimal: Result) -> RowResult:
    """Return a row in which ours has 0.3 of fio's rate, and is wanted to have 0.6 of it, or 0.85 of minimal's."""
    wanted = Wanted("rate", 0.6, ("fio",), "ours", instead=Wanted("rate", 0.85, ("minimal",), "ours"))
    return row_of(result("ours", 300, 300, ours=True), minimal, result("fio", 1000, 1000), wanted=(wanted,))


def test_outcomes_with_minimal_slow_by_its_cpu_time_compare_with_minimal() -> None:
    (rate,) = limited(result("minimal", 400, 400, cpu=1.0)).outcomes()
    assert (rate.against, rate.wanted.limit, rate.reached) == ("minimal", 0.85, False)
    assert rate.found is not None
    assert rate.found.median == 0.75
    assert rate.instead_of is not None
    assert (rate.instead_of.against, rate.instead_of.reached) == ("fio", False)
    assert rate.instead_of.yardstick is not None
    assert rate.instead_of.yardstick.median == 0.4


def test_outcomes_with_minimal_slow_by_its_device_compare_with_fio() -> None:
    # An operation takes 2.5 ms, of which 0.5 ms are CPU time. The other 2 ms are more than the 1.67 ms that 0.6 of fio's rate allows.
    (rate,) = limited(result("minimal", 400, 400, cpu=0.2)).outcomes()
    assert (rate.against, rate.wanted.limit, rate.reached, rate.instead_of) == ("fio", 0.6, False, None)
    assert rate.yardstick is not None
    assert rate.yardstick.median == 0.4


def test_outcomes_with_minimal_fast_enough_compare_with_fio() -> None:
    (rate,) = limited(result("minimal", 600, 600, cpu=1.0)).outcomes()
    assert (rate.against, rate.reached, rate.instead_of) == ("fio", False, None)


def test_outcomes_without_minimal_compare_with_fio() -> None:
    missing = result("minimal")
    missing.failed = Failed("cannot be had here: no C compiler", unavailable=True)
    (rate,) = limited(missing).outcomes()
    assert (rate.against, rate.reached, rate.yardstick, rate.instead_of) == ("fio", False, None, None)


def test_as_json_of_replaced_target_has_both() -> None:
    (rate,) = as_json(limited(result("minimal", 400, 400, cpu=1.0)))["wanted"]
    assert (rate["against"], rate["at_least"], rate["found"]["median"]) == ("minimal", 0.85, 0.75)
    original = rate["instead_of"]
    assert (original["against"], original["at_least"], original["found"]["median"]) == ("fio", 0.6, 0.3)
    assert original["yardstick"]["median"] == 0.4


def test_checkpoints_of_row_with_bare_checkpoint_are_ratios_of_cpu_time() -> None:
    bare = Result(native.CHECKPOINT, result("", 100, 100, cpu=0.25).rounds)
    both = row_of(result("ours", 100, 50, ours=True, cpu=0.5), bare)
    found = both.checkpoints(both.results[0])
    assert found is not None
    assert (found.low, found.median, found.high) == (2, 3, 4)
    assert both.checkpoints(bare) is None
    assert row_of(*both.results[:1]).checkpoints(both.results[0]) is None


def test_winners_beside_other_build_are_peers_of_this_one() -> None:
    here = result("ours", 100, ours=True)
    other = Result(replace(here.contender, name="ours [before]", build="before"), result("", 10).rounds)
    compared = row_of(here, other, result("peer", 50))
    assert compared.winners() == []
    (beside,) = compared.beside()
    assert (beside.ours, beside.build) == ("ours", "before")
    assert beside.rate is not None
    assert beside.rate.median == 10
