/* The system calls, one to one. glibc has no wrappers for native AIO and libaio would be a second shared library, so syscall(2). */
#include "native.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int taio_io_setup(unsigned nr_events, uint64_t *context)
{
    aio_context_t id = 0; /* the kernel insists on 0 */
    if (syscall(SYS_io_setup, nr_events, &id) < 0)
        return -errno;
    *context = id;
    return 0;
}

int taio_io_destroy(uint64_t context)
{
    return syscall(SYS_io_destroy, (aio_context_t)context) < 0 ? -errno : 0;
}

long taio_io_submit(uint64_t context, long nr, struct iocb **iocbs)
{
    long n = syscall(SYS_io_submit, (aio_context_t)context, nr, iocbs);
    return n < 0 ? -errno : n;
}

int taio_io_cancel(uint64_t context, struct iocb *iocb, struct io_event *result)
{
    return syscall(SYS_io_cancel, (aio_context_t)context, iocb, result) < 0 ? -errno : 0;
}

long taio_io_getevents(uint64_t context, long min_nr, long nr, struct io_event *events, struct timespec *timeout)
{
    long n = syscall(SYS_io_getevents, (aio_context_t)context, min_nr, nr, events, timeout);
    return n < 0 ? -errno : n;
}

int64_t taio_preadv_nowait(int fd, const struct iovec *vector, int parts, int64_t offset)
{
    ssize_t n = preadv2(fd, vector, parts, offset, RWF_NOWAIT);
    return n < 0 ? -errno : n;
}

int64_t taio_pread_nowait(int fd, void *memory, size_t length, int64_t offset)
{
    struct iovec vector = {memory, length};
    return taio_preadv_nowait(fd, &vector, 1, offset);
}

int taio_describe(int fd, struct taio_description *description)
{
    struct statx s;
    int flags = fcntl(fd, F_GETFL);
    memset(description, 0, sizeof *description);
    if (flags < 0)
        return -errno;
    /* glibc's statx is not used for its fallback to fstat, which may go to the network. */
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS | STATX_DIOALIGN, &s) < 0)
        return -errno;
    description->mode = s.stx_mode;
    description->open_flags = (uint32_t)flags;
    if (S_ISBLK(s.stx_mode))
        description->device = (uint64_t)s.stx_rdev_major << 32 | s.stx_rdev_minor;
    else
        description->device = (uint64_t)s.stx_dev_major << 32 | s.stx_dev_minor;
    description->inode = s.stx_ino;
    description->size = s.stx_size;
    if (s.stx_mask & STATX_DIOALIGN) {
        description->has_dioalign = 1;
        description->dio_memory = s.stx_dio_mem_align;
        description->dio_offset = s.stx_dio_offset_align;
    }
    return 0;
}
