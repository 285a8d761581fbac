"""The C of the contender "minimal", and how it is compiled when bench runs.

It is as little as a direct read needs: one call prepares a read, and one takes all completions. The kernel maps the ring of
completions into the process, at the address that is the context's id (struct aio_ring in the kernel's fs/aio.c). The kernel moves the
ring's tail, and we move its head. One thread makes all calls, so there is no lock.

It is not the package's C, so that the yardstick stays as it is when the package's C changes. Hence it needs a C compiler and Python's
headers; where they are missing the contender is left out. cffi writes the extension module in a process of its own: its parser would
leave objects in this one, and the garbage collector would visit them while contenders are measured.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from trio_aio._tools.bench.measure import Unavailable

__all__ = ("compiled",)

_MODULE = "_trio_aio_bench_minimal"

_DECLARATIONS = """
struct yardstick { int event_fd; int64_t *completions; ...; };
struct yardstick *yardstick_open(unsigned slots, int *error);
void yardstick_close(struct yardstick *y);
int yardstick_read(struct yardstick *y, unsigned slot, int fd, uint64_t memory, uint64_t length, int64_t offset);
void yardstick_submit(struct yardstick *y);
unsigned yardstick_reap(struct yardstick *y);
"""

_SOURCE = """
#include <errno.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Reads in one io_submit at most. A call costs several times what a read in it costs. */
enum { TOGETHER = 16 };

struct mapped_ring {
    unsigned id, size, head, tail, magic, compatible, incompatible, header_length;
    struct io_event events[];
};

struct yardstick {
    aio_context_t context;
    struct mapped_ring *ring;
    int event_fd;
    unsigned prepared;    /* reads that io_submit has not seen: the first of `queue` */
    unsigned in_flight;   /* these, and those that the kernel has */
    unsigned woken;       /* tasks that have a completion and have not started their next read in this tick */
    unsigned refused;     /* pairs in `refusals` */
    struct iocb *iocbs;   /* one for each slot */
    struct iocb **queue;
    int64_t *completions; /* of the last reap, in pairs: slot, result */
    int64_t *refusals;    /* pairs as well: reads that io_submit refused */
};

static void yardstick_close(struct yardstick *y)
{
    if (y->context != 0)
        syscall(SYS_io_destroy, y->context);
    if (y->event_fd >= 0)
        close(y->event_fd);
    free(y->iocbs);
    free(y->queue);
    free(y->completions);
    free(y->refusals);
    free(y);
}

static struct yardstick *yardstick_open(unsigned slots, int *error)
{
    struct yardstick *y = calloc(1, sizeof *y);
    *error = ENOMEM;
    if (y == NULL)
        return NULL;
    y->event_fd = -1;
    y->iocbs = calloc(slots, sizeof *y->iocbs);
    y->queue = calloc(slots, sizeof *y->queue);
    y->completions = calloc(2 * slots, sizeof *y->completions);
    y->refusals = calloc(2 * slots, sizeof *y->refusals);
    if (y->iocbs != NULL && y->queue != NULL && y->completions != NULL && y->refusals != NULL) {
        y->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (y->event_fd < 0 || syscall(SYS_io_setup, slots, &y->context) < 0) {
            *error = errno;
        } else {
            y->ring = (struct mapped_ring *)(uintptr_t)y->context;
            if (y->ring->magic == 0xa10a10a1 && y->ring->incompatible == 0)
                return y;
            *error = ENOSYS;
        }
    }
    yardstick_close(y);
    return NULL;
}

/* Submit what is prepared. A read that the kernel refuses becomes a completion, and those behind it are submitted all the same. */
static void yardstick_submit(struct yardstick *y)
{
    unsigned done = 0;
    while (done < y->prepared) {
        long accepted = syscall(SYS_io_submit, y->context, (long)(y->prepared - done), y->queue + done);
        if (accepted < 0) {
            y->refusals[2 * y->refused] = (int64_t)y->queue[done]->aio_data;
            y->refusals[2 * y->refused + 1] = -errno;
            y->refused++;
            eventfd_write(y->event_fd, 1);
            accepted = 1;
        }
        done += (unsigned)accepted;
    }
    y->prepared = 0;
    y->woken = 0;
}

/* Prepare a read. Submit if enough are prepared, or if the device is idle and no task is about to add a read. Return how many are
 * still prepared: where there are any, yardstick_submit is due at the end of the tick. */
static int yardstick_read(struct yardstick *y, unsigned slot, int fd, uint64_t memory, uint64_t length, int64_t offset)
{
    struct iocb *iocb = &y->iocbs[slot];
    *iocb = (struct iocb){
        .aio_data = slot, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fd, .aio_buf = memory, .aio_nbytes = length,
        .aio_offset = offset, .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)y->event_fd};
    y->queue[y->prepared++] = iocb;
    y->in_flight++;
    if (y->woken > 0)
        y->woken--;
    if (y->prepared >= TOGETHER || (y->woken == 0 && y->in_flight == y->prepared))
        yardstick_submit(y);
    return (int)y->prepared;
}

/* Take all completions into `completions` and return their number. The eventfd is emptied before the look at the ring: what completes
 * in between makes it readable again, which costs one look and loses nothing. */
static unsigned yardstick_reap(struct yardstick *y)
{
    struct mapped_ring *ring = y->ring;
    uint64_t count;
    unsigned taken = 0, head = ring->head, tail;
    if (read(y->event_fd, &count, sizeof count) < 0) {
        /* Already empty: an earlier look took these completions. */
    }
    for (; taken < y->refused; taken++) {
        y->completions[2 * taken] = y->refusals[2 * taken];
        y->completions[2 * taken + 1] = y->refusals[2 * taken + 1];
    }
    y->refused = 0;
    /* Acquire: the kernel has written the events before it moved the tail. Release: we have read them before it may reuse them. */
    tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
    for (; head != tail; taken++) {
        y->completions[2 * taken] = (int64_t)ring->events[head].data;
        y->completions[2 * taken + 1] = ring->events[head].res;
        head = head + 1 == ring->size ? 0 : head + 1;
    }
    __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
    y->in_flight -= taken;
    y->woken += taken;
    return taken;
}
"""


@functools.cache
def compiled() -> tuple[Any, Any]:
    """Return cffi's (ffi, lib) of the C above, compiled once in each process. `Unavailable` without a C compiler or Python's headers."""
    compiler = _compiler()
    includes = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    if not any(Path(folder, "Python.h").exists() for folder in includes):
        raise Unavailable(f"cannot be had here: no Python.h in {' or '.join(sorted(includes))}")
    with tempfile.TemporaryDirectory() as folder:
        declarations, source, made, library = (Path(folder, name) for name in ("cdef", "csrc", "module.c", f"{_MODULE}.so"))
        declarations.write_text(_DECLARATIONS)
        source.write_text(_SOURCE)
        _execute([sys.executable, "-m", "cffi.gen_src", "read-sources", _MODULE, str(declarations), str(source), str(made)])
        flags = ["-O2", "-shared", "-fPIC", *(f"-I{folder}" for folder in sorted(includes))]
        _execute([*compiler, *flags, str(made), "-o", str(library)])
        spec = importlib.util.spec_from_file_location(_MODULE, library)
        assert spec is not None
        assert spec.loader is not None
        try:
            module = importlib.util.module_from_spec(spec)
        except ImportError as error:
            # The folder for temporary files may be mounted noexec.
            raise Unavailable(f"cannot be had here: {error}") from None
        spec.loader.exec_module(module)
    return module.ffi, module.lib


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]) is not None:
            return command
    raise Unavailable("cannot be had here: no C compiler")


def _execute(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with status {done.returncode}: {done.stderr.strip()}")
