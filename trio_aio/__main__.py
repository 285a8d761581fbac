"""``python -m trio_aio doctor`` and ``python -m trio_aio bench``."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("main",)

_Number = TypeVar("_Number", int, float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trio_aio", description="Asynchronous file I/O on Linux native AIO: tools.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor",
        help="what this kernel, its limits and a file give, and what to do about it",
        description="Say what this kernel, its limits and the file or folder PATH give, by trying on a temporary file there, and what to "
        "do about it. Exit status 1 if native AIO cannot be used.",
    )
    bench = commands.add_parser(
        "bench",
        help="how fast this is beside other libraries, on a disk",
        description="Measure this library beside trio.open_file, anyio.open_file and, where installed, aiofiles, aiofile, caio and fio, on "
        "the disk that PATH is on. Exit status 1 if a contender of ours failed; whether what is wanted was reached the tables say.",
    )
    for command in (doctor, bench):
        command.add_argument(
            "path", nargs="?", default=".", metavar="PATH", help="a file or folder on the disk (default: the current folder)"
        )
        command.add_argument("--json", action="store_true", help="for programs: JSON on the standard output")
    bench.add_argument("--only", action="append", default=[], metavar="ROW", help="this row; may be given more than once")
    bench.add_argument("--quick", action="store_true", help="smaller files, less time, fewer rounds")
    bench.add_argument("--rounds", type=_positive(int), metavar="N", help="how often each contender has its turn (default: 5, quick 3)")
    bench.add_argument("--seconds", type=_positive(float), metavar="S", help="of one turn (default: 1, quick 0.2)")
    bench.add_argument("--size", type=_positive(int), metavar="MIB", help="of the largest file (default: 1024, quick 256)")
    options = parser.parse_args(arguments)

    try:
        if options.command == "doctor":
            from trio_aio import _doctor

            return _doctor.run(options.path, as_json=options.json)
        from trio_aio import _bench

        return _bench.run(
            _bench.Options(options.path, options.only, options.quick, options.json, options.rounds, options.seconds, options.size)
        )
    except KeyboardInterrupt:
        return 130


def _positive(kind: Callable[[str], _Number]) -> Callable[[str], _Number]:
    def positive_number(text: str) -> _Number:  # argparse names it in its error
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    return positive_number


if __name__ == "__main__":
    sys.exit(main())
