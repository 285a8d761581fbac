"""Names on kernels and in sandboxes that lack something: no openat2, no new bits of statx, a getdents64 that says little."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ..conftest import need
from ..support.page_cache import attempts
from ..support.programs import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = [sys.executable, "-X", "dev", "-m", "tests.support.every_name_call"]
OPENAT2 = 437  # on all architectures


@pytest.mark.parametrize("kind", ["ext4", "overlay"])
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_without_openat2_workers_serve_everything(on_filesystem: Callable[[str], Path], kind: str, error: int) -> None:
    said = check([*PROGRAM, str(on_filesystem(kind)), "--refuse", str(OPENAT2), str(error), "--without-openat2"])
    assert said.split() == ["workers", "none"]


def test_with_openat2_the_same_program_runs_inline(filesystem: Path) -> None:
    for _ in attempts("a mount that is local at the end", 20):  # on a busy machine a call sleeps, and the lane leaves the mount for long
        served, mounts = check([*PROGRAM, str(filesystem)]).split()
        assert served == "inline"
        if mounts == "local":
            break


# ---- a libc whose `syscall` answers as older kernels do

OLD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

/* What this pretends: statx knows neither mounts nor alignments for direct I/O (before Linux 5.8), getdents64 never says a type, and
 * returns a few entries at a time. */
long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (real == NULL)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_getdents64 && getenv("FEW_ENTRIES") && a[2] > 600)
        a[2] = 600;
    long n = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_statx && n == 0 && getenv("OLD_STATX")) {
        uint32_t *mask = (uint32_t *)a[4];
        *mask &= 0x7ff;
        memset((char *)a[4] + 0x90, 0, 0x100 - 0x90); /* from stx_mnt_id on */
    }
    if (number == SYS_getdents64 && n > 0 && getenv("UNKNOWN_TYPES"))
        for (long at = 0; at < n; at += *(uint16_t *)((char *)a[1] + at + 16))
            *((char *)a[1] + at + 18) = 0;
    return n;
}
"""


@pytest.fixture(scope="module")
def old_libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that changes what the kernel says."""
    compiler = os.environ.get("CC") or shutil.which("cc") or ""
    need(bool(compiler), "a C compiler")
    folder = tmp_path_factory.mktemp("old-libc")
    (folder / "old.c").write_text(OLD)
    library = folder / "old.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, folder / "old.c", "-ldl"], check=True)
    return library


@pytest.mark.parametrize(
    "quirks",
    [
        "OLD_STATX UNKNOWN_TYPES FEW_ENTRIES",
        *(pytest.param(quirk, marks=pytest.mark.slow) for quirk in ("OLD_STATX", "UNKNOWN_TYPES", "FEW_ENTRIES")),
    ],
)
def test_older_answers_of_the_kernel_give_the_same_results(
    disk: Path, old_libc: Path, quirks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(old_libc))
    for quirk in quirks.split():
        monkeypatch.setenv(quirk, "1")
    assert check([*PROGRAM, str(disk)]).split() == ["inline", "local"]


def test_preloaded_library_hides_the_types_of_entries(disk: Path, old_libc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the test above would pass with a library that is never called."""
    monkeypatch.setenv("LD_PRELOAD", str(old_libc))
    monkeypatch.setenv("UNKNOWN_TYPES", "1")
    program = (
        "import ctypes, os, sys\n"
        "buffer = ctypes.create_string_buffer(4096)\n"
        "n = ctypes.CDLL(None).syscall(ctypes.c_long(217 if os.uname().machine == 'x86_64' else 61), "
        "os.open(sys.argv[1], os.O_RDONLY), buffer, 4096)\n"
        "print(n > 0, buffer.raw[18])\n"
    )
    assert check([sys.executable, "-c", program, str(disk)]).split() == ["True", "0"]
