"""fio with libaio: the same file, size, depth and time, by a program in C. It says what the disk and the kernel can do."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

from trio_aio._tools.bench.contenders.contender import Contender
from trio_aio._tools.bench.measure import Unavailable

if TYPE_CHECKING:
    from typing import Literal

    from trio_aio._tools.bench.measure import Work

__all__ = ("READ", "WRITE")

# fio measures no shorter time well: its own clock counts milliseconds.
SHORTEST = 0.1
# Pieces of this many bytes are read in order.
SEQUENTIAL_FROM = 1 << 20


def _read(work: Work) -> None:
    sequential = work.load.whole or work.load.piece >= SEQUENTIAL_FROM
    _measure(work, "read", "read" if sequential else "randread", {"readonly": ""})


def _write(work: Work) -> None:
    # The file has its full length already: fio has to overwrite it as it is.
    _measure(work, "write", "randwrite", {"fallocate": "none"})


def _measure(work: Work, direction: Literal["read", "write"], pattern: str, options: dict[str, str]) -> None:
    program = shutil.which("fio")
    if program is None:
        raise Unavailable("fio is not on the PATH")
    load = work.load
    arguments = options | {
        "name": "bench",
        "filename": load.path.replace(":", "\\:"),
        "ioengine": "libaio",
        "direct": "1",
        "rw": pattern,
        "randrepeat": "0",
        "bs": str(load.piece),
        "size": str(load.size),
        "iodepth": str(load.tasks),
        "time_based": "",
        "runtime": f"{max(load.seconds, SHORTEST) * 1000:.0f}ms",
        "output-format": "json",
    }
    command = [f"--{name}={value}" if value else f"--{name}" for name, value in arguments.items()]
    done = subprocess.run([program, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    moved = job[direction]
    seconds = moved["runtime"] / 1000
    work.measured.operations = moved["total_ios"]
    work.measured.seconds = seconds
    work.measured.cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds


READ = Contender("fio libaio", _read)
WRITE = Contender("fio libaio", _write)
