"""``python -m trio_aio bench``: this library beside others, on the user's own disk.

Rows are loads (rows.py), contenders do them (contenders.py), each in a process of its own (children.py), taking turns for several rounds.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_aio._bench.children import Failed, prepare, started
from trio_aio._bench.files import Files
from trio_aio._bench.measure import Load
from trio_aio._bench.report import Result, RowResult, as_json, print_row
from trio_aio._bench.rows import GIB, MIB, ROWS, Row, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ("Options", "run")

_PACKAGES = ("trio", "anyio", "aiofile", "aiofiles", "caio", "trio-aio")


@dataclass(frozen=True)
class Options:
    """What the command line said; None: by `quick`."""

    path: str = "."
    only: Sequence[str] = ()
    quick: bool = False
    json: bool = False
    rounds: int | None = None
    seconds: float | None = None
    size: int | None = None
    """MiB of the largest file."""


def run(options: Options) -> int:
    """Measure and print; give the exit status: 1 if one of ours failed, 2 if there is nothing to measure."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return _refuse("bench needs rich: pip install 'trio-aio[bench]' (which has the other libraries to measure against, too)")
    unknown = [name for name in options.only if name not in [row.name for row in ROWS]]
    if unknown:
        return _refuse(f"there is no row {', '.join(map(repr, unknown))}; the rows are: {', '.join(row.name for row in ROWS)}")
    rows = [row for row in ROWS if row.name in options.only or not options.only]
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
        return _refuse(f"{folder} has {free // MIB:,} MiB free, and this needs {needed // MIB:,}: see --size, --quick")
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    errors = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    results = []
    prepare()
    # Drawn between rounds only: a thread that draws would take its time from what is being measured.
    with _ended_by_sigterm(), Progress(*columns, console=errors, auto_refresh=False, transient=True) as progress:
        try:
            files = Files(folder, sizes)
        except OSError as error:
            return _refuse(str(error))
        total = sum(len(row.contenders) * row.rounds(rounds) for row in rows)
        bar = progress.add_task("", total=total)

        def step(what: str, count: float) -> None:
            progress.update(bar, description=what, advance=count, refresh=True)

        with files:
            for row in rows:
                result = _measure(row, files, sizes, row.rounds(rounds), seconds, step)
                results.append(result)
                if not options.json:
                    print_row(console, result)
    if options.json:
        about = _about(folder) | {"rounds": rounds, "seconds": seconds, "large_bytes": sizes.large, "written_bytes": sizes.written}
        print(json.dumps({"version": 1, **about, "rows": [as_json(result) for result in results]}, indent=1))
    return 1 if any(_went_wrong(each) for result in results for each in result.results) else 0


def _refuse(why: str) -> int:
    print(f"trio_aio bench: {why}", file=sys.stderr)
    return 2


def _went_wrong(result: Result) -> bool:
    failed = result.failed
    if failed is None or failed.unavailable or not result.contender.ours:
        return False
    print(f"trio_aio bench: {result.contender.name}: {failed.detail or failed.reason}", file=sys.stderr)
    return True


def _needed(rows: Sequence[Row], sizes: Sizes) -> int:
    """Give how many bytes of the disk the rows take at most at once."""
    files = {row.file for row in rows} - {"none", "sparse", "long sparse"}
    written = [sizes.of(row.file) for row in rows if row.file in ("none", "sparse", "long sparse")]
    return sum(sizes.of(file) for file in files) + max(written, default=0) + 64 * MIB


def _measure(row: Row, files: Files, sizes: Sizes, rounds: int, seconds: float, step: Callable[[str, float], None]) -> RowResult:
    results = [Result(contender) for contender in row.contenders]
    size = sizes.of(row.file)
    piece = min(row.piece, max(size // 4, 4096))
    with started(row.name, [contender.name for contender in row.contenders]) as children:
        for number in range(rounds):
            # Who comes first in a round is another each time: the disk's own cache, and what else runs, favour places.
            order = list(zip(results, children, strict=True))
            first = number % len(order)
            for turn, (result, child) in enumerate(itertools.islice(itertools.cycle(order), first, first + len(order))):
                step(f"{row.name}: {result.contender.name}", 0)
                if result.failed is None:
                    file = result.contender.file or row.file
                    path = files.path(file)
                    if row.cold or row.whole:
                        files.settle()
                    elif not row.direct:
                        files.warm(path)
                    seed = number * len(order) + turn
                    load = Load(
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
                    answer = child.measure(load)
                    if isinstance(answer, Failed):
                        result.failed = answer
                        result.rounds.clear()
                    else:
                        result.rounds.append(answer)
                step(f"{row.name}: {result.contender.name}", 1)
    return RowResult(row, piece, results)


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
    """Have SIGTERM end the program as an exception does, so that the files go away."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
