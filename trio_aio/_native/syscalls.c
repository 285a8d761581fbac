/* The system calls, one to one. Any thread may call them.
 *
 * glibc has no wrappers for native AIO, and libaio would be one more shared library to ship, so we use syscall(2). */
#include "native.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
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

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5; the same number on all architectures */
#endif

#define WATCH_EVERY 32 /* calls: to look whether one slept costs 0.4 us */
#define AHEAD (128u << 10) /* bytes: the read-ahead window of nearly all devices */

/* Return how many pages from the index `first` on are in the page cache, of `count`; -errno if the kernel does not say. Never sleeps. */
static int64_t cached_pages(int fd, uint64_t first, uint64_t count, uint64_t page)
{
    struct {
        uint64_t offset, length;
    } range = {first * page, count * page};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;
    if (count == 0)
        return 0;
    return syscall(SYS_cachestat, fd, &range, &pages, 0) < 0 ? -errno : (int64_t)pages.cached;
}

/* Regions of AHEAD bytes that were wholly cached some moments ago, with as much behind them. Then a mark in them starts no read-ahead, and only the
 * range itself has to be asked for: to look at 64 pages costs as much as the read. All threads share the table. Each entry is one number, 40 bits
 * of fd and region and 24 bits of time, so relaxed loads and stores do; they order nothing. Not thread-local: an extension has little room for that. */
#define REGIONS 1024
#define TIME_SHIFT 22 /* nanoseconds to units of 4.2 ms */
#define TIME_MASK 0xffffffu
#define REGION_KNOWN 24 /* units: 100 ms */
static uint64_t known[REGIONS];

static uint64_t coarse_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return ((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec) >> TIME_SHIFT & TIME_MASK;
}

/* Return whether an entry is that of a region (`key`, its low 24 bits zero), and not too old. */
static int is_known(uint64_t place, uint64_t key, uint64_t now)
{
    uint64_t entry = __atomic_load_n(&known[place], __ATOMIC_RELAXED);
    return (entry & ~(uint64_t)TIME_MASK) == key && ((now - entry) & TIME_MASK) < REGION_KNOWN;
}

/* Return whether the pages from `first` up to `last` that the file has are cached. Call it with `size`, the pages of the file. */
static int all_cached(int fd, uint64_t first, uint64_t last, uint64_t size, uint64_t page)
{
    last = last < size ? last : size;
    return last <= first || cached_pages(fd, first, last - first, page) >= (int64_t)(last - first);
}

/* A page may carry a mark: a read of it starts the next read-ahead. Marks lie in windows of at most AHEAD bytes that were read in order. So there
 * is none that matters if the pages behind the range are cached too, up to AHEAD or the end of the file; or if both neighbours are missing. */
int taio_is_cached(int fd, int64_t offset, uint64_t length)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE); /* no system call */
    if (length == 0 || offset < 0 || length > (uint64_t)(INT64_MAX - offset) - 2 * AHEAD)
        return -EAGAIN;
    uint64_t first = (uint64_t)offset / page, end = ((uint64_t)offset + length + page - 1) / page;
    uint64_t region = (uint64_t)offset / AHEAD, last = (region + 2) * (AHEAD / page);
    uint64_t key = (((uint64_t)fd + 1) * 0x9e3779b97f4a7c15u ^ (region + 1) * 0xc2b2ae3d27d4eb4fu) & ~(uint64_t)TIME_MASK;
    uint64_t place = (region + (uint64_t)fd * 61) % REGIONS, now = coarse_now();
    int in_region = end <= (region + 1) * (AHEAD / page);
    if (in_region && is_known(place, key, now)) {
        if (cached_pages(fd, first, end - first, page) >= (int64_t)(end - first))
            return 0;
        __atomic_store_n(&known[place], 0, __ATOMIC_RELAXED);
    }
    int64_t cached = cached_pages(fd, first, 1, page);
    if (cached < 0)
        return cached == -ENOSYS ? 0 : (int)cached;
    struct statx s;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE | STATX_TYPE, &s) < 0)
        return -errno;
    uint64_t size = S_ISREG(s.stx_mode) ? (s.stx_size + page - 1) / page : UINT64_MAX;
    if (S_ISREG(s.stx_mode) && (uint64_t)offset >= s.stx_size)
        return 0; /* the kernel looks at the size first */
    if (in_region && all_cached(fd, region * (AHEAD / page), last, size, page)) {
        __atomic_store_n(&known[place], key | now, __ATOMIC_RELAXED);
        return 0;
    }
    if (all_cached(fd, first, end + AHEAD / page, size, page))
        return 0;
    if (!all_cached(fd, first, end, size, page))
        return -EAGAIN;
    int is_alone = cached_pages(fd, end, 1, page) == 0 && (first == 0 || cached_pages(fd, first - 1, 1, page) == 0);
    return is_alone ? 0 : -EAGAIN;
}

int64_t taio_pread_cached(int fd, void *memory, size_t length, int64_t offset)
{
    static unsigned calls; /* of all threads */
    int error = taio_is_cached(fd, offset, length);
    if (error < 0) /* a read behind the end of everything: it does nothing, but says whether the filesystem knows RWF_NOWAIT */
        return taio_pread_nowait(fd, memory, 1, INT64_MAX - 1) == -EOPNOTSUPP ? -EOPNOTSUPP : error;
    if (__atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED) % WATCH_EVERY != 0)
        return taio_pread_nowait(fd, memory, length, offset);
    struct rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    int64_t n = taio_pread_nowait(fd, memory, length, offset);
    getrusage(RUSAGE_THREAD, &after);
    return n > 0 && after.ru_nvcsw != before.ru_nvcsw ? n | TAIO_SLEPT : n;
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

int taio_describe_and_probe(int fd, struct taio_description *description)
{
    enum { LARGEST = 4096 };
    int error = taio_describe(fd, description);
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
