/* The system calls, one to one, and what an fd is (taio_describe). Any thread may call them; taio_describe_and_probe may sleep.
 *
 * glibc has no wrappers for native AIO, and libaio would be one more shared library to ship, so we use syscall(2). */
#include "native.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* CMakeLists.txt defines it; a build of the C code alone has no Python code that could be newer. */
#ifndef TAIO_DECLARATIONS
#define TAIO_DECLARATIONS ""
#endif

const char *taio_declarations(void)
{
    return TAIO_DECLARATIONS;
}

int taio_io_setup(unsigned nr_events, uint64_t *context)
{
    aio_context_t id = 0; /* the kernel refuses anything but 0 */
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

long taio_times_slept(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) < 0 ? 0 : usage.ru_nvcsw - usage.ru_majflt;
}

int64_t taio_cached_size(const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_CACHED};
    struct statx s;
    long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    if (fd < 0)
        return -errno;
    int64_t size = syscall(SYS_statx, (int)fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &s) < 0 ? -errno : (int64_t)s.stx_size;
    close((int)fd);
    return size;
}

/* Linux 6.14, newer than the oldest headers we build with. The values are ABI, from include/uapi/linux/stat.h. */
#define STATX_DIO_READ_ALIGN_ 0x00020000u
#define STX_DIO_READ_OFFSET_ALIGN 0xb4

int taio_describe(int fd, struct taio_description *description)
{
    struct statx s;
    int flags = fcntl(fd, F_GETFL);
    taio_forget_cached(fd);
    memset(description, 0, sizeof *description);
    description->buffered_fd = -1;
    if (flags < 0)
        return -errno;
    /* Not glibc's statx: it falls back to fstat, which may ask a server. */
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
                STATX_BASIC_STATS | STATX_BTIME | STATX_DIOALIGN | STATX_DIO_READ_ALIGN_, &s) < 0)
        return -errno;
    description->mode = s.stx_mode;
    description->open_flags = (uint32_t)flags;
    if (S_ISBLK(s.stx_mode))
        description->device = (uint64_t)s.stx_rdev_major << 32 | s.stx_rdev_minor;
    else
        description->device = (uint64_t)s.stx_dev_major << 32 | s.stx_dev_minor;
    description->inode = s.stx_ino;
    description->size = s.stx_size;
    description->blocks = s.stx_blocks;
    if (s.stx_mask & STATX_BTIME)
        description->birth = (uint64_t)s.stx_btime.tv_sec * 1000000000u + s.stx_btime.tv_nsec;
    if (s.stx_mask & STATX_DIOALIGN) {
        description->has_dioalign = 1;
        description->dio_memory = s.stx_dio_mem_align;
        description->dio_offset = s.stx_dio_offset_align;
    }
    if (s.stx_mask & STATX_DIO_READ_ALIGN_)
        memcpy(&description->dio_read_offset, (char *)&s + STX_DIO_READ_OFFSET_ALIGN, sizeof description->dio_read_offset);
    return 0;
}

/* Return whether a listener is asked about each read of a file: then even a read of nothing sleeps. So it may where a server has the file. */
static uint32_t is_watched(int fd, const struct taio_description *description)
{
    char nothing;
    if (!S_ISREG(description->mode) || (description->open_flags & O_ACCMODE) == O_WRONLY)
        return 0;
    long before = taio_times_slept();
    return pread(fd, &nothing, 0, 0) == 0 && taio_times_slept() > before && taio_place_of(fd) == TAIO_LOCAL;
}

int taio_describe_and_probe(int fd, struct taio_description *description)
{
    enum { LARGEST = 4096 };
    int error = taio_describe(fd, description);
    if (error == 0)
        description->watched = is_watched(fd, description);
    if (error != 0 || !(description->open_flags & O_DIRECT) || description->has_dioalign)
        return error;
    /* Try ever larger alignments until a read succeeds. An empty file returns 0 for any of them and a write-only fd fails for all: then we
     * take the largest, which is always right. */
    char *memory = mmap(NULL, 2 * LARGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    uint32_t unit = 1;
    ssize_t n;
    do
        n = pread(fd, memory + unit % LARGEST, unit, 0);
    while (n < 0 && errno == EINVAL && (unit = unit == 1 ? 512 : 2 * unit) <= LARGEST);
    munmap(memory, 2 * LARGEST);
    description->has_dioalign = 1;
    description->dio_memory = description->dio_offset = n > 0 ? unit : LARGEST;
    return 0;
}

void taio_use_huge_pages(uint64_t memory, uint64_t length)
{
    const uint64_t huge = 2 << 20;
    uint64_t start = (memory + huge - 1) & ~(huge - 1), end = (memory + length) & ~(huge - 1);
    if (end > start)
        madvise((void *)(uintptr_t)start, end - start, MADV_HUGEPAGE); /* only advice: a kernel without huge pages refuses it */
}
