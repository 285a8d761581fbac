/* What is in the page cache, and reads of it on the loop's thread.
 *
 * How the kernel works. preadv2(RWF_NOWAIT) copies pages that are cached and sleeps for none. But of a page that is missing, or that carries
 * the mark of the read-ahead, it starts the read-ahead, and for that the filesystem may read the map of the file's blocks, and sleep. tmpfs and
 * overlayfs do not know RWF_NOWAIT. cachestat(2) says how many pages of a range are cached; of overlayfs, whose pages belong to the file of a
 * layer, it says none. There mincore(2) of a mapping is right, because the mapping is one of that file. But to those who neither own the file
 * nor may write to it, mincore says that every page is cached.
 *
 * What we do about it. The loop asks first, and reads only what is cached. Where there is no RWF_NOWAIT, a worker finds out once how to ask
 * (taio_residency_find), and each plain read is watched, because the kernel may drop a page between the question and the read. Whether mincore
 * is truthful, a page behind the end of every file tells: such a page is never cached. The mapping is never touched, so a file that becomes
 * shorter does no harm; and PROT_NONE, so that mlockall(2) does not read it. */
#include "native.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5; the same number on all architectures */
#endif

#define WATCH_EVERY 32 /* calls with RWF_NOWAIT: to look whether one slept costs 0.4 us */
#define AHEAD (128u << 10) /* bytes: the read-ahead window of nearly all devices */

#define MOST_KEPT 1024 /* files, with two mappings each: a process may have 65,530 mappings (vm.max_map_count), and needs them for memory too */
#define SMALLEST_MAPPING ((uint64_t)1 << 20) /* bytes: a small file may grow so far before it is mapped anew */
#define LARGEST_MAPPING ((uint64_t)1 << 36) /* bytes: a mapping that is not touched costs address space only */
#define BEYOND ((int64_t)1 << 62) /* bytes: no filesystem has files of this size */

static int64_t pages_by_cachestat(int fd, uint64_t first, uint64_t count, uint64_t page)
{
    struct {
        uint64_t offset, length;
    } range = {first * page, count * page};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;
    return syscall(SYS_cachestat, fd, &range, &pages, 0) < 0 ? -errno : (int64_t)pages.cached;
}

static int64_t pages_by_mincore(uint64_t address, uint64_t count, uint64_t page)
{
    unsigned char pages[128];
    int64_t cached = 0;
    while (count > 0) {
        uint64_t now = count < sizeof pages ? count : sizeof pages;
        if (mincore((void *)(uintptr_t)address, now * page, pages) < 0)
            return -errno;
        for (uint64_t i = 0; i < now; i++)
            cached += pages[i] & 1;
        address += now * page;
        count -= now;
    }
    return cached;
}

/* Return how many pages from the index `first` on are in the page cache, of `count`; -errno if the kernel does not say, -ERANGE behind the end
 * of the mapping. Never sleeps. */
static int64_t cached_pages(int fd, const struct taio_residency *r, uint64_t first, uint64_t count, uint64_t page)
{
    if (count == 0)
        return 0;
    if (r == NULL || r->way != TAIO_BY_MINCORE)
        return pages_by_cachestat(fd, first, count, page);
    if (first * page < r->start || (first + count) * page - r->start > r->length)
        return -ERANGE;
    return pages_by_mincore(r->address + first * page - r->start, count, page);
}

/* Return whether mincore says what is so. That may change while the file is open: a process may give up the rights it had. */
static int is_truthful(const struct taio_residency *r, uint64_t page)
{
    return pages_by_mincore(r->beyond, 1, page) == 0;
}

/* Regions of AHEAD bytes that were wholly cached some moments ago, with as much behind them. Then a mark in them starts no read-ahead, and only the
 * range itself has to be asked for: to look at 64 pages costs as much as the read. All threads share the table. Each entry is one number, 40 bits
 * of fd and region and 24 bits of time, so relaxed loads and stores do; they order nothing. Not thread-local: an extension has little room for that. */
#define REGIONS 8192 /* 1 GiB: with fewer, regions of one large file push each other out */
#define TIME_SHIFT 22 /* nanoseconds to units of 4.2 ms */
#define TIME_MASK 0xffffffu
#define REGION_KNOWN 24 /* units: 100 ms */
static uint64_t known[REGIONS];
/* How often a number of an fd was described: a number that is used again is another file's. All threads. */
#define NUMBERS 4096
static uint32_t described[NUMBERS];

void taio_forget_cached(int fd)
{
    __atomic_fetch_add(&described[(unsigned)fd % NUMBERS], 1, __ATOMIC_RELAXED);
}

uint64_t taio_use_of(int fd)
{
    return (uint64_t)__atomic_load_n(&described[(unsigned)fd % NUMBERS], __ATOMIC_RELAXED) << 32 | (unsigned)fd;
}

uint64_t taio_coarse_now(void)
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
static int all_cached(int fd, const struct taio_residency *r, uint64_t first, uint64_t last, uint64_t size, uint64_t page)
{
    last = last < size ? last : size;
    return last <= first || cached_pages(fd, r, first, last - first, page) >= (int64_t)(last - first);
}

/* A page may carry a mark: a read of it starts the next read-ahead. Marks lie in windows of at most AHEAD bytes that were read in order. So there
 * is none that matters if the pages behind the range are cached too, up to AHEAD or the end of the file; or if both neighbours are missing. */
int taio_is_cached(int fd, const struct taio_residency *r, int64_t offset, uint64_t length)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE); /* no system call */
    if (length == 0 || offset < 0 || length > (uint64_t)(INT64_MAX - offset) - 2 * AHEAD)
        return -EAGAIN;
    if (r != NULL && r->way == TAIO_BY_MINCORE && !is_truthful(r, page))
        return -EPERM;
    uint64_t first = (uint64_t)offset / page, end = ((uint64_t)offset + length + page - 1) / page;
    uint64_t region = (uint64_t)offset / AHEAD, last = (region + 2) * (AHEAD / page);
    uint64_t key = ((taio_use_of(fd) + 1) * 0x9e3779b97f4a7c15u ^ (region + 1) * 0xc2b2ae3d27d4eb4fu) & ~(uint64_t)TIME_MASK;
    uint64_t place = (region + (uint64_t)fd * 61) % REGIONS, now = taio_coarse_now();
    int in_region = end <= (region + 1) * (AHEAD / page);
    if (in_region && is_known(place, key, now)) {
        if (cached_pages(fd, r, first, end - first, page) >= (int64_t)(end - first))
            return 1;
        __atomic_store_n(&known[place], 0, __ATOMIC_RELAXED);
    }
    int64_t cached = cached_pages(fd, r, first, 1, page);
    if (cached < 0)
        return cached == -ENOSYS && r == NULL ? 0 : (int)cached;
    struct statx s;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE | STATX_TYPE, &s) < 0)
        return -errno;
    uint64_t size = S_ISREG(s.stx_mode) ? (s.stx_size + page - 1) / page : UINT64_MAX;
    if (S_ISREG(s.stx_mode) && (uint64_t)offset >= s.stx_size)
        return 0; /* the kernel looks at the size first */
    if (cached == 0)
        return -EAGAIN;
    if (in_region && all_cached(fd, r, region * (AHEAD / page), last, size, page)) {
        __atomic_store_n(&known[place], key | now, __ATOMIC_RELAXED);
        return 0;
    }
    if (all_cached(fd, r, first, end + AHEAD / page, size, page))
        return 0;
    if (!all_cached(fd, r, first, end, size, page))
        return -EAGAIN;
    int is_alone = cached_pages(fd, r, end, 1, page) == 0 && (first == 0 || cached_pages(fd, r, first - 1, 1, page) == 0);
    return is_alone ? 0 : -EAGAIN;
}

static int64_t pread_plainly(int fd, void *memory, size_t length, int64_t offset)
{
    ssize_t n = pread(fd, memory, length, offset);
    return n < 0 ? -errno : n;
}

int64_t taio_pread_cached(int fd, const struct taio_residency *r, void *memory, size_t length, int64_t offset)
{
    static unsigned calls; /* of all threads */
    int answer = taio_is_cached(fd, r, offset, length);
    if (answer < 0 && r != NULL)
        return answer;
    if (answer < 0) /* a read behind the end of everything: it does nothing, but says whether the filesystem knows RWF_NOWAIT */
        return taio_pread_nowait(fd, memory, 1, INT64_MAX - 1) == -EOPNOTSUPP ? -EOPNOTSUPP : answer;
    int due = r == NULL ? taio_sets_access_time_or_server(fd) : taio_sets_access_time(fd);
    if (due != 0)
        return due < 0 ? due : -EAGAIN;
    if (r == NULL && answer == 1 && __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED) % WATCH_EVERY != 0)
        return taio_pread_nowait(fd, memory, length, offset);
    long before = taio_times_slept();
    int64_t n = r == NULL ? taio_pread_nowait(fd, memory, length, offset) : pread_plainly(fd, memory, length, offset);
    return n >= 0 && taio_times_slept() > before ? n | TAIO_SLEPT : n;
}

enum taio_place taio_place_of(int fd)
{
    for (int i = 0; i < 2; i++) {
        struct statx unused;
        long before = taio_times_slept();
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_SIZE, &unused) < 0)
            return TAIO_UNKNOWN;
        if (taio_times_slept() <= before)
            return TAIO_LOCAL;
    }
    return TAIO_SERVER;
}

/* Files that are mapped. */
static _Atomic int kept;

static uint64_t map_untouched(int fd, uint64_t length, int64_t start)
{
    void *address = mmap(NULL, length, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, start);
    return address == MAP_FAILED ? 0 : (uint64_t)(uintptr_t)address;
}

/* Map the part of the file around `offset`. */
static void residency_map(struct taio_residency *r, int fd, uint64_t size, uint64_t offset, uint64_t page)
{
    r->start = offset / LARGEST_MAPPING * LARGEST_MAPPING;
    uint64_t wanted = 2 * (size - r->start);
    wanted = wanted < SMALLEST_MAPPING ? SMALLEST_MAPPING : (wanted + SMALLEST_MAPPING - 1) / SMALLEST_MAPPING * SMALLEST_MAPPING;
    r->length = wanted < LARGEST_MAPPING ? wanted : LARGEST_MAPPING;
    r->page = page;
    r->address = map_untouched(fd, r->length, (int64_t)r->start);
    r->beyond = r->address == 0 ? 0 : map_untouched(fd, page, BEYOND);
}

void taio_residency_find(struct taio_residency *r, int fd, int64_t offset)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), first = (uint64_t)offset / page;
    struct statx s;
    if (r->place == TAIO_UNKNOWN)
        r->place = (int32_t)taio_place_of(fd);
    if (r->place != TAIO_LOCAL || offset < 0 || offset > BEYOND / 2)
        return;
    int64_t cached = pages_by_cachestat(fd, first, 1, page);
    if (cached > 0) {
        r->way = TAIO_BY_CACHESTAT;
        return;
    }
    if (!r->may_map || (cached < 0 && cached != -ENOSYS))
        return;
    /* Files that the kernel makes up have no blocks, and those of devices may be mapped. */
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE | STATX_TYPE | STATX_BLOCKS, &s) < 0 ||
        !S_ISREG(s.stx_mode) || s.stx_blocks == 0 || (uint64_t)offset >= s.stx_size)
        return;
    if (atomic_fetch_add(&kept, 1) < MOST_KEPT)
        residency_map(r, fd, s.stx_size, (uint64_t)offset, page);
    else
        atomic_fetch_sub(&kept, 1);
    if (r->beyond != 0 && is_truthful(r, page) && pages_by_mincore(r->address + first * page - r->start, 1, page) == 1)
        r->way = TAIO_BY_MINCORE;
    else
        taio_residency_release(r);
}

void taio_residency_release(struct taio_residency *r)
{
    r->way = TAIO_NO_WAY;
    if (r->length == 0)
        return;
    atomic_fetch_sub(&kept, 1);
    if (r->address != 0)
        munmap((void *)(uintptr_t)r->address, r->length);
    if (r->beyond != 0)
        munmap((void *)(uintptr_t)r->beyond, r->page);
    r->address = r->beyond = r->length = 0;
}
