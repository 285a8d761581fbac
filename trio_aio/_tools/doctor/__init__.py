"""`python -m trio_aio doctor`: what this kernel, its limits and a place on a disk provide, and what to do about it.

The doctor tries things instead of looking names up, because a filesystem's name, its mount options and the kernel's version do not
say whether a request is asynchronous. Each module has one subject: the engine (engine.py), the place (place.py) and its page cache
(cachestat.py, cached_reads.py), names (names.py), asynchronous requests (asynchronous.py), advice (advice.py), and what is shown
(report.py).

All trials use a temporary file that loses its name as soon as it is open, so nothing is left behind. The doctor uses the public
interface of trio_aio, as a user's program would. The one exception is `aio_limit`, which error messages of `io_setup` use too.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import ExitStack

from trio_aio._errors import aio_limit
from trio_aio._tools.doctor.advice import advice
from trio_aio._tools.doctor.asynchronous import examine_requests, examine_waits
from trio_aio._tools.doctor.cached_reads import examine_cached_reads
from trio_aio._tools.doctor.cachestat import has_cachestat
from trio_aio._tools.doctor.engine import examine_engine, kernel_context
from trio_aio._tools.doctor.names import examine_names
from trio_aio._tools.doctor.place import examine_direct, examine_mount, examine_nowait, find_place
from trio_aio._tools.doctor.report import Report

__all__ = ("Report", "examine", "run")


def run(path: str, *, as_json: bool) -> int:
    """Examine `path`, print the report and return the exit status: 1 if native AIO cannot be used, 2 if the path cannot be found."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        print(f"trio_aio doctor: {error}", file=sys.stderr)
        return 2
    report = examine(path, mode)
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        print("\n".join(report.lines()))
    return report.status


def examine(path: str, mode: int) -> Report:
    """Return all that can be found out about this kernel and `path`. mode: `st_mode` of the path."""
    report = Report(kernel=platform.release(), python=platform.python_version(), path=os.path.realpath(path))
    report.aio_nr, report.aio_max_nr = aio_limit("aio-nr"), aio_limit("aio-max-nr")
    report.cachestat = has_cachestat()
    examine_engine(report)
    examine_mount(report)
    examine_names(report)
    with kernel_context(report) as context, ExitStack() as stack:
        place = find_place(report, mode, stack)
        if place is not None and examine_direct(report, place, stack):
            examine_nowait(report, place)
            examine_cached_reads(report, place)
            if context is not None:
                examine_requests(report, place, context)
                examine_waits(report, place, context)
    report.advice = list(advice(report))
    return report
