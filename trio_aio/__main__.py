"""The command line: `python -m trio_aio doctor`, `bench` and `run`.

The tools are imported when they are asked for, because `bench` needs packages that the library does not.
"""

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
    """Do what the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trio_aio", description="Asynchronous file I/O on Linux native AIO: tools.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor",
        help="report what this kernel, its limits and a place on a disk provide, and what to do about it",
        description="Report what this kernel, its limits and the file or folder PATH provide, by trying on a temporary file there, and "
        "what to do about it. The exit status is 1 if native AIO cannot be used, and 2 if PATH cannot be found.",
    )
    bench = commands.add_parser(
        "bench",
        help="measure this library beside others, on a disk",
        description="Measure this library beside trio.open_file, anyio.open_file and, where installed, aiofiles, aiofile, caio and fio, on "
        "the disk that PATH is on. The tables say whether the targets were reached. The exit status is 1 if a contender of ours failed.",
    )
    for command in (doctor, bench):
        command.add_argument(
            "path", nargs="?", default=".", metavar="PATH", help="a file or folder on the disk (default: the current folder)"
        )
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
    bench.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW",
        help="measure this row, or this group of rows (names, integrations, ...); may be given more than once",
    )
    bench.add_argument("--quick", action="store_true", help="use smaller files, less time and fewer rounds")
    bench.add_argument("--rounds", type=_positive(int), metavar="N", help="measure each contender N times (default: 5, quick 3)")
    bench.add_argument("--seconds", type=_positive(float), metavar="S", help="the length of one measurement (default: 1, quick 0.2)")
    bench.add_argument("--size", type=_positive(int), metavar="MIB", help="the size of the largest file (default: 1024, quick 256)")
    bench.add_argument(
        "--beside",
        action="append",
        default=[],
        type=_build,
        metavar="NAME=PYTHON",
        help="measure the trio_aio of another interpreter or environment in the same rounds; may be given more than once",
    )
    program = commands.add_parser(
        "run",
        help="run a program with the files of this package in the places of trio's and anyio's",
        description="Call trio_aio.install with all options, then run a script or, with -m, a module. What follows PROGRAM is its own.",
    )
    program.add_argument("-m", dest="is_module", action="store_true", help="PROGRAM is the name of a module")
    program.add_argument("program", metavar="PROGRAM")
    program.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    options = parser.parse_args(arguments)
    if options.command == "run":
        from trio_aio._dropin.run import run

        run(options.program, options.arguments, is_module=options.is_module)
        return 0
    if options.command == "bench":
        names = [name for name, _ in options.beside]
        if len(set(names)) != len(names):
            bench.error(f"argument --beside: names must differ: {', '.join(names)}")

    try:
        if options.command == "doctor":
            from trio_aio._tools import doctor as _doctor

            return _doctor.run(options.path, as_json=options.json)
        from trio_aio._tools import bench as _bench

        del options.command
        return _bench.run(_bench.Options(**vars(options)))
    except KeyboardInterrupt:
        return 130


def _positive(kind: Callable[[str], _Number]) -> Callable[[str], _Number]:
    # argparse puts the function's name into its error message.
    def positive_number(text: str) -> _Number:
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    return positive_number


def _build(text: str) -> tuple[str, str]:
    name, _, python = text.partition("=")
    if not name or not python:
        raise argparse.ArgumentTypeError(f"must be NAME=PYTHON, not {text!r}")
    return name, python


if __name__ == "__main__":
    sys.exit(main())
