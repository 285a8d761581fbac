"""`python -m trio_aio bench`: this library beside others, on the user's own disk.

Rows are loads (rows.py), and contenders do them (contenders/), each in a process of its own (children.py). They alternate for several
rounds, because the disk and other programs are faster at some times than at others. `--beside` adds other builds of trio_aio to the
same rounds (builds.py). results.py compares the figures, and report.py shows them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trio_aio._tools.bench import builds
from trio_aio._tools.bench.bystander import bystanders
from trio_aio._tools.bench.children import Failed, Start, prepare, started
from trio_aio._tools.bench.files import Files
from trio_aio._tools.bench.measure import Load
from trio_aio._tools.bench.report import as_json, print_row
from trio_aio._tools.bench.results import Result, RowResult, beside_name
from trio_aio._tools.bench.rows import GIB, MIB, ROWS, Row, Sizes, rows_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_aio._tools.bench.builds import Build

__all__ = ("Options", "run")

_PACKAGES = ("trio", "anyio", "aiofile", "aiofiles", "caio", "fsspec", "zarr", "starlette", "trio-aio")


@dataclass(frozen=True)
class Options:
    """What the command line says. None: `quick` decides."""

    path: str = "."
    only: Sequence[str] = ()
    quick: bool = False
    json: bool = False
    rounds: int | None = None
    seconds: float | None = None
    size: int | None = None
    """MiB of the largest file."""
    beside: Sequence[tuple[str, str]] = ()
    """Other builds: a name and an interpreter for each."""


def run(options: Options) -> int:
    """Measure, print, and return the exit status: 1 if a contender of this build failed, 2 if nothing can be measured."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return _refuse("bench needs rich: pip install 'trio-aio[bench]' (which installs the libraries to compare with, too)")
    unknown = [name for name in options.only if not rows_named(name)]
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        return _refuse(f"--only must name rows, not {', '.join(map(repr, unknown))}; the rows are: {names}")
    chosen = [row for name in options.only for row in rows_named(name)]
    rows = [row for row in ROWS if row in chosen or not options.only]
    rounds = options.rounds or (3 if options.quick else 5)
    seconds = options.seconds or (0.2 if options.quick else 1.0)
    large = options.size * MIB if options.size else (256 * MIB if options.quick else GIB)
    sizes = Sizes(large, written=large if options.quick else 4 * large)
    folder = os.path.abspath(options.path)
    if not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _refuse(str(error))
    needed = _needed(rows, sizes)
    if free < needed:
        return _refuse(f"{folder} must have {needed // MIB:,} MiB free, not {free // MIB:,}: use --size or --quick")
    try:
        others = [builds.find(name, python) for name, python in options.beside]
        here = builds.here() if others else None
    except builds.BuildError as error:
        return _refuse(f"--beside: {error}")
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    errors = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    results = []
    prepare()
    # The bar is drawn between rounds only: a thread that draws would take CPU time from what is measured.
    with _ended_by_sigterm(), Progress(*columns, console=errors, auto_refresh=False, transient=True) as progress:
        try:
            files = Files(folder, sizes)
        except OSError as error:
            return _refuse(str(error))
        entries = {row.name: _entries(row, here, others) for row in rows}
        total = sum(len(entries[row.name]) * row.rounds(rounds) for row in rows)
        bar = progress.add_task("", total=total)

        def step(what: str, count: float) -> None:
            progress.update(bar, description=what, advance=count, refresh=True)

        with files:
            for row in rows:
                result = _measure(row, entries[row.name], files, sizes, row.rounds(rounds), seconds, step)
                results.append(result)
                if not options.json:
                    print_row(console, result)
    if options.json:
        about = _about(folder) | {"rounds": rounds, "seconds": seconds, "large_bytes": sizes.large, "written_bytes": sizes.written}
        about["beside"] = [build.as_json() for build in others]
        print(json.dumps({"version": 1, **about, "rows": [as_json(result) for result in results]}, indent=1))
    return 1 if any(_went_wrong(each) for result in results for each in result.results) else 0


def _refuse(why: str) -> int:
    print(f"trio_aio bench: {why}", file=sys.stderr)
    return 2


def _went_wrong(result: Result) -> bool:
    failed = result.failed
    if failed is None or failed.unavailable or not result.contender.ours or result.contender.build is not None:
        return False
    print(f"trio_aio bench: {result.contender.name}: {failed.detail or failed.reason}", file=sys.stderr)
    return True


def _needed(rows: Sequence[Row], sizes: Sizes) -> int:
    """Return how many bytes of the disk the rows need at most at once."""
    files = {row.file for row in rows} - {"none", "sparse", "long sparse"}
    written = [sizes.of(row.file) for row in rows if row.file in ("none", "sparse", "long sparse")]
    return sum(sizes.of(file) for file in files) + max(written, default=0) + 64 * MIB


def _entries(row: Row, here: Build | None, others: Sequence[Build]) -> list[tuple[Result, Start]]:
    """Return what a row measures: its contenders, and behind each of ours the same one of every other build."""
    entries = []
    for contender in row.contenders:
        entries.append((Result(contender), Start(row.name, contender.name, here if contender.ours else None)))
        if contender.ours:
            for build in others:
                assert build.name is not None
                other = replace(contender, name=beside_name(contender.name, build.name), build=build.name)
                entries.append((Result(other), Start(row.name, contender.name, build)))
    return entries


def _measure(
    row: Row,
    entries: Sequence[tuple[Result, Start]],
    files: Files,
    sizes: Sizes,
    rounds: int,
    seconds: float,
    step: Callable[[str, float], None],
) -> RowResult:
    results = [result for result, _ in entries]
    piece = min(row.piece, max(sizes.of(row.file) // 4, 4096))
    with started([start for _, start in entries]) as children, bystanders() as idle:
        for number in range(rounds):
            # Each round starts with another contender, and every second round goes backwards: the disk's cache, and what else runs, favour
            # some places, and nothing should always come right before or right after the same other one.
            order = list(zip(results, children, strict=True))
            first = number % len(order)
            order = order[first:] + order[:first]
            if number % 2:
                order.reverse()
            for place, (result, child) in enumerate(order):
                step(f"{row.name}: {result.contender.name}", 0)
                if result.failed is None:
                    load = _load(row, result, files, sizes, piece, seconds, seed=number * len(order) + place)
                    answer = child.measure(load, idle[result.contender.loop])
                    if isinstance(answer, Failed):
                        result.failed = answer
                        result.rounds.clear()
                    else:
                        result.rounds.append(answer)
                step(f"{row.name}: {result.contender.name}", 1)
    return RowResult(row, piece, results)


def _load(row: Row, result: Result, files: Files, sizes: Sizes, piece: int, seconds: float, seed: int) -> Load:
    """Return the load of one round, with its file in the state that the row asks for."""
    file = result.contender.file or row.file
    path = files.path(file)
    if row.cold or row.whole:
        files.settle()
    if not (row.cold or row.direct or file == "none"):
        files.warm(path)
    return Load(
        path,
        sizes.of(file),
        piece,
        row.tasks,
        seconds,
        seed,
        random=row.random,
        direct=row.direct,
        cold=row.cold,
        whole=row.whole,
    )


def _about(folder: str) -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": versions,
        "folder": folder,
    }


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program by an exception, so that the files are removed."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
