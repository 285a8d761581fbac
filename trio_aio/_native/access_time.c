/* The time of access, which a read may have to set.
 *
 * How the kernel works. With `relatime`, the default of mount(8), the first read after a change of the file sets it, and so does the first read
 * of a day. For that the filesystem starts a change of its own, which waits for its journal if the disk is slow: a third of a second, for a page
 * that is in memory. RWF_NOWAIT does not help. Some files keep the old time all the same: those of a lower layer of overlayfs, of a read-only
 * snapshot, and those with the attribute A (chattr(1)). Nothing that a program can ask for says so.
 *
 * What we do about it. The loop asks first, and leaves such a read to a worker or a submitter. The question is a system call, so its answer "no"
 * holds for a moment: until the coarse clock reaches its next 4.2 ms, or this package has changed a file. What others change within that moment
 * is not seen. Neither is a mount with `strictatime`, where each read sets the time. There watching notices a read that slept.
 *
 * Where a read that was left to others has not set the time, the next ones will not either: the loop makes them until the times change. So it
 * notes the times for which it has left a read (`left_for`). The thread that makes a read looks for that note before it, and compares the times
 * after it. While a filesystem is frozen no time is set either: then the first read after the thaw is the loop's, and may sleep once. */
#include "native.h"

#include <linux/magic.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FILES 4096
#define DAY (24 * 60 * 60) /* seconds */
#define GRAIN 100000000 /* nanoseconds: a read so soon after the last one may have set the same time */

/* How many files this process has changed. All threads; a change is counted before the loop learns of it, and that orders the two. */
static _Atomic uint32_t changes;
/* For an fd's number, the last answer "no": what it was about and when, mixed into one number, so relaxed loads and stores do. All threads. */
static _Atomic uint64_t settled[FILES];
/* For a file: with which times a read of it was left to others, and with which times such a read has left them as they were. Each is one number
 * as above, or 0. */
static _Atomic uint64_t left_for[FILES], kept[FILES];

void taio_note_change(void)
{
    atomic_fetch_add_explicit(&changes, 1, memory_order_relaxed);
}

uint64_t taio_file_of(uint64_t device, uint64_t inode)
{
    uint64_t mixed = (device * 0x9e3779b97f4a7c15u + inode) * 0xc2b2ae3d27d4eb4fu;
    return mixed ^ mixed >> 32;
}

static uint64_t mix(uint64_t file, const struct taio_times *t)
{
    uint64_t mixed = file;
    for (int i = 0; i < 3; i++)
        mixed = (mixed ^ (uint64_t)(i == 0 ? t->accessed : i == 1 ? t->modified : t->changed)) * 0x9e3779b97f4a7c15u + 1;
    return mixed | 1;
}

/* Ask for the times, from memory alone. Returns -errno. */
static int times_of(int fd, struct taio_times *out)
{
    struct statx s;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_ATIME | STATX_MTIME | STATX_CTIME, &s) < 0)
        return -errno;
    *out = (struct taio_times){taio_nanoseconds(s.stx_atime), taio_nanoseconds(s.stx_mtime), taio_nanoseconds(s.stx_ctime)};
    return 0;
}

static int64_t coarse_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Return whether the kernel would set the time, if it ever does: fs/inode.c, relatime_need_update. */
static int are_due(const struct taio_times *t)
{
    return t->accessed <= t->modified || t->accessed <= t->changed || coarse_time() / 1000000000 - t->accessed / 1000000000 >= DAY;
}

/* Return whether reads of this file leave the time as it is. A server would be asked, so only call it for a filesystem that has none. */
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

static int was_kept(uint64_t file, const struct taio_times *t)
{
    return atomic_load_explicit(&kept[file % FILES], memory_order_relaxed) == mix(file, t);
}

/* Return whether a read of a file whose times are due is left to others, and note that. */
static int leave(uint64_t file, int fd, const struct taio_times *t)
{
    if (never_sets(fd))
        return 0;
    atomic_store_explicit(&left_for[file % FILES], mix(file, t), memory_order_relaxed);
    return 1;
}

int taio_times_are_due(uint64_t file, int fd, const struct taio_times *t)
{
    return are_due(t) && !was_kept(file, t) && leave(file, fd, t);
}

uint64_t taio_read_begins(uint64_t file)
{
    return atomic_load_explicit(&left_for[file % FILES], memory_order_relaxed);
}

void taio_read_has_ended(uint64_t file, int fd, uint64_t left)
{
    struct taio_times t;
    if (left == 0 || times_of(fd, &t) < 0)
        return;
    if (mix(file, &t) == left) {
        int64_t age = coarse_time() - t.accessed;
        if (age >= 0 && age < GRAIN)
            return;
        atomic_store_explicit(&kept[file % FILES], left, memory_order_relaxed);
    }
    atomic_compare_exchange_strong_explicit(&left_for[file % FILES], &left, 0, memory_order_relaxed, memory_order_relaxed);
}

/* is_known: no server has the filesystem. */
static int sets_access_time(int fd, int is_known)
{
    struct taio_times t;
    char nothing;
    uint64_t file = taio_use_of(fd);
    uint64_t about = file * 0x9e3779b97f4a7c15u + atomic_load_explicit(&changes, memory_order_relaxed);
    uint64_t answer = about * 0xc2b2ae3d27d4eb4fu + taio_coarse_now() + 1;
    _Atomic uint64_t *last = &settled[(unsigned)fd % FILES];
    if (atomic_load_explicit(last, memory_order_relaxed) == answer)
        return 0;
    int error = times_of(fd, &t);
    if (error < 0)
        return error != -EBADF; /* the read reports that */
    if (are_due(&t) && !was_kept(file, &t)) {
        if (!is_known && taio_pread_nowait(fd, &nothing, 1, INT64_MAX - 1) == -EOPNOTSUPP) /* behind the end of everything: it does nothing */
            return -EOPNOTSUPP;
        if (leave(file, fd, &t))
            return 1;
    }
    atomic_store_explicit(last, answer, memory_order_relaxed);
    return 0;
}

int taio_sets_access_time(int fd)
{
    return sets_access_time(fd, 1);
}

int taio_sets_access_time_or_server(int fd)
{
    return sets_access_time(fd, 0);
}
