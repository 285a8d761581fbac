/* The time of access, which a read may have to set.
 *
 * How the kernel works. With `relatime`, the default of mount(8), the first read after a change of the file sets it, and so does the first read
 * of a day. For that the filesystem starts a change of its own, which waits for its journal if the disk is slow: a third of a second, for a page
 * that is in memory. RWF_NOWAIT does not help.
 *
 * What we do about it. The loop asks first, and leaves such a read to a worker. The question is a system call, so its answer "no" holds for a
 * moment: until the coarse clock reaches its next 4.2 ms, or a worker or submitter of this process has changed a file. What another process changes
 * within that moment is not seen. Neither is a mount with `strictatime`, where each read sets the time. There watching notices a read that slept. */
#include "native.h"

#include <linux/magic.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NUMBERS 4096
#define DAY (24 * 60 * 60) /* seconds */

/* How many files this process has changed. All threads; a change is counted before the loop learns of it, and that orders the two. */
static _Atomic uint32_t changes;
/* For an fd's number, the last answer "no": what it was about and when, mixed into one number, so relaxed loads and stores do. All threads. */
static _Atomic uint64_t settled[NUMBERS];

void taio_note_change(void)
{
    atomic_fetch_add_explicit(&changes, 1, memory_order_relaxed);
}

static int64_t nanoseconds(struct statx_timestamp t)
{
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Return whether reads of this file leave the time as it is. */
static int never_sets(int fd)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return 0;
    if (fs.f_flags & (ST_NOATIME | ST_RDONLY) || fs.f_type == TMPFS_MAGIC) /* tmpfs has no journal */
        return 1;
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && flags & O_NOATIME;
}

int taio_times_are_due(int fd, int64_t atime_ns, int64_t mtime_ns, int64_t ctime_ns)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (atime_ns > mtime_ns && atime_ns > ctime_ns && now.tv_sec - atime_ns / 1000000000 < DAY)
        return 0;
    return !never_sets(fd);
}

int taio_sets_access_time(int fd)
{
    uint64_t about = taio_use_of(fd) * 0x9e3779b97f4a7c15u + atomic_load_explicit(&changes, memory_order_relaxed);
    uint64_t answer = about * 0xc2b2ae3d27d4eb4fu + taio_coarse_now() + 1;
    _Atomic uint64_t *last = &settled[(unsigned)fd % NUMBERS];
    if (atomic_load_explicit(last, memory_order_relaxed) == answer)
        return 0;
    struct statx s;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_ATIME | STATX_MTIME | STATX_CTIME, &s) < 0)
        return errno != EBADF; /* the read reports that */
    if (taio_times_are_due(fd, nanoseconds(s.stx_atime), nanoseconds(s.stx_mtime), nanoseconds(s.stx_ctime)))
        return 1;
    atomic_store_explicit(last, answer, memory_order_relaxed);
    return 0;
}
