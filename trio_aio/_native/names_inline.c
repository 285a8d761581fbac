/* The inline lane for names: calls on the loop's thread that the kernel answers from its caches. names.h says what each does.
 *
 * How the kernel works. RESOLVE_CACHED makes openat2 fail with EAGAIN where it would have to ask a disk or a server for a name. That is about
 * the path alone: opening a file, and its attributes, may still ask a server. O_PATH calls nothing of the file's, and statx with
 * AT_STATX_DONT_SYNC answers from memory, but on a network filesystem with attributes that may be old.
 *
 * What we do about it. O_PATH and statx come first. They say on which mount the file lies. Only if a worker has found that mount to be local
 * does the answer count, and only then is the file opened. Only regular files are. */
#include "native.h"
#include "names_parts.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LONG_NS = 5000000 }; /* a call that takes longer has kept the loop, although it did not sleep */

/* What a watched call starts from. */
struct before {
    long slept, faults, preempted;
    struct timespec clock;
};

static void look(struct before *b)
{
    struct rusage usage; /* a major fault waited for a page of the program, its code perhaps, and says nothing of the mount */
    getrusage(RUSAGE_THREAD, &usage);
    b->slept = usage.ru_nvcsw - usage.ru_majflt;
    b->faults = usage.ru_majflt;
    b->preempted = usage.ru_nivcsw;
    clock_gettime(CLOCK_MONOTONIC, &b->clock);
}

static void watch_begin(struct taio_local *local, struct before *b)
{
    local->key = 0;
    local->watched = local->first > 0 || (local->hits + local->misses) % local->sample == 0;
    if (local->first > 0)
        local->first--;
    if (local->watched)
        look(b);
}

/* Return what the loop is told: the result, unless the call slept. final: an error that is an answer too, as ENOENT is. */
static int64_t watch_end(struct taio_local *local, const struct before *b, int64_t result, int final)
{
    local->last = result;
    if (result >= 0 || result == -ENOENT || result == final)
        local->hits++;
    else
        local->misses++;
    if (local->watched) {
        struct before now;
        look(&now);
        int64_t took = (int64_t)(now.clock.tv_sec - b->clock.tv_sec) * 1000000000 + now.clock.tv_nsec - b->clock.tv_nsec;
        if (now.slept > b->slept || (took > LONG_NS && now.preempted == b->preempted && now.faults == b->faults))
            return TAIO_NAME_SLEPT;
    }
    return result;
}

static int is_local(const struct taio_local *local)
{
    for (uint32_t i = 0; i < local->count; i++)
        if (local->keys[i] == local->key)
            return 1;
    return 0;
}

static int open_cached(int dir, const char *path, int flags, int resolve)
{
    return taio_openat2(dir, path, flags, 0, (uint64_t)(unsigned)resolve | RESOLVE_CACHED);
}

/* Open with O_PATH and describe. Returns an fd, TAIO_NAME_UNKNOWN or -errno. */
static int open_known(struct taio_local *local, int dir, const char *path, int flags, int resolve, struct taio_stat *out)
{
    int fd = open_cached(dir, path, O_PATH | flags, resolve);
    if (fd < 0)
        return fd;
    int error = taio_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, out, &local->key);
    if (error == 0 && is_local(local))
        return fd;
    close(fd);
    return error < 0 ? error : TAIO_NAME_UNKNOWN;
}

/* Split a time as Python does. */
static void set_time(struct taio_status *out, int which, int64_t ns)
{
    int64_t seconds = ns / 1000000000, rest = ns % 1000000000;
    if (rest < 0) {
        seconds--;
        rest += 1000000000;
    }
    out->seconds[which] = seconds;
    out->times[which] = (double)seconds + 1e-9 * (double)rest;
    out->nanoseconds[which] = ns;
}

static void fill(struct taio_status *out, const struct taio_stat *st)
{
    *out = (struct taio_status){.mode = st->mode, .inode = st->inode, .device = st->device, .links = st->links, .uid = st->uid, .gid = st->gid,
                                .size = st->size, .block_size = st->block_size, .blocks = st->blocks, .rdev = st->rdev};
    set_time(out, 0, st->atime_ns);
    set_time(out, 1, st->mtime_ns);
    set_time(out, 2, st->ctime_ns);
}

int64_t taio_inline_stat(struct taio_local *local, int dir, const char *path, int flags, int resolve, struct taio_status *out)
{
    struct before b;
    struct taio_stat st;
    watch_begin(local, &b);
    int fd = open_known(local, dir, path, flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0, resolve, &st);
    if (fd >= 0) {
        close(fd);
        if (out != NULL)
            fill(out, &st);
    }
    return watch_end(local, &b, fd < 0 ? fd : 0, 0);
}

int64_t taio_inline_fstat(struct taio_local *local, int fd, struct taio_status *out)
{
    struct before b;
    struct taio_stat st;
    watch_begin(local, &b);
    int64_t rc = taio_mount_of(fd, &local->key);
    if (rc == 0)
        rc = is_local(local) ? taio_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, &st, NULL) : TAIO_NAME_UNKNOWN;
    if (rc == 0)
        fill(out, &st);
    return watch_end(local, &b, rc, 0);
}

int64_t taio_inline_access(struct taio_local *local, int dir, const char *path, int mode, int flags)
{
    struct before b;
    struct taio_stat st;
    watch_begin(local, &b);
    int64_t rc = open_known(local, dir, path, flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0, 0, &st);
    if (rc >= 0) {
        int fd = (int)rc;
        rc = syscall(SYS_faccessat2, fd, "", mode, AT_EMPTY_PATH | (flags & AT_EACCESS)) < 0 ? -errno : 0;
        close(fd);
    }
    return watch_end(local, &b, rc, -EACCES);
}

static int sets_access_time(int fd, const struct taio_stat *st)
{
    struct taio_times times = {st->atime_ns, st->mtime_ns, st->ctime_ns};
    return taio_times_are_due(taio_file_of(st->device, st->inode), fd, &times);
}

int64_t taio_inline_readlink(struct taio_local *local, int dir, const char *path, int resolve, char *out, uint64_t capacity)
{
    struct before b;
    struct taio_stat st;
    watch_begin(local, &b);
    /* An empty name is that of `dir` itself here, and of nothing in openat2. */
    int64_t rc = path[0] == '\0' ? -EAGAIN : open_known(local, dir, path, O_NOFOLLOW, resolve, &st);
    if (rc >= 0) {
        int fd = (int)rc;
        if (!S_ISLNK(st.mode))
            rc = -EINVAL;
        else if (sets_access_time(fd, &st))
            rc = -EAGAIN;
        else
            rc = readlinkat(fd, "", out, capacity);
        if (rc == -1 || rc == (int64_t)capacity)
            rc = -EAGAIN;
        close(fd);
    }
    return watch_end(local, &b, rc, -EINVAL);
}

/* Open a regular file of a local mount. Returns an fd that may be used on the loop's thread, or -errno. */
static int64_t open_regular(struct taio_local *local, int dir, const char *path, int flags, int resolve, struct taio_stat *st)
{
    int64_t fd = open_known(local, dir, path, 0, resolve, st);
    if (fd < 0)
        return fd;
    close((int)fd);
    if (!S_ISREG(st->mode))
        return -EAGAIN;
    /* O_NONBLOCK: do not wait for a lease. The name may refer to another file by now, so look again at what was opened. */
    return open_cached(dir, path, flags | O_NONBLOCK | O_NOCTTY, resolve);
}

int64_t taio_inline_open(struct taio_local *local, int dir, const char *path, int flags, int resolve, struct taio_description *out)
{
    struct before b;
    struct taio_stat st;
    watch_begin(local, &b);
    int64_t fd = open_regular(local, dir, path, flags, resolve, &st);
    if (fd >= 0) {
        int error = taio_describe((int)fd, out);
        if (error == 0 && (!S_ISREG(out->mode) || out->inode != st.inode))
            error = -EAGAIN;
        if (error == 0 && fcntl((int)fd, F_SETFL, (int)out->open_flags & ~O_NONBLOCK) < 0)
            error = -errno;
        out->open_flags &= ~(uint32_t)O_NONBLOCK;
        if (error < 0) {
            close((int)fd);
            fd = -EAGAIN;
        }
    }
    return watch_end(local, &b, fd, 0);
}

/* Read what is in the page cache: `size` bytes, fewer only at the end of the file. Where RWF_NOWAIT does not work (tmpfs), the question alone
 * must do. `expected`: how many they will be. Returns their number, or -EAGAIN. */
static int64_t read_cached(int fd, char *out, uint64_t size, int64_t offset, uint64_t expected)
{
    if (size == 0)
        return 0;
    if (taio_is_cached(fd, NULL, offset, size) < 0)
        return -EAGAIN;
    int64_t n = taio_pread_nowait(fd, out, size, offset);
    if (n == -EOPNOTSUPP) { /* then a kernel that cannot be asked is no answer */
        static const struct taio_residency by_cachestat = {.way = TAIO_BY_CACHESTAT};
        n = taio_pread_cached(fd, &by_cachestat, out, size, offset);
        n = n < 0 ? n : n & ~TAIO_SLEPT; /* the caller watches */
    }
    return n == (int64_t)expected ? n : -EAGAIN; /* a part is missing, or the file has another size by now */
}

int64_t taio_inline_read_file(struct taio_local *local, int dir, const char *path, int resolve, char *out, uint64_t size, int64_t offset,
                              int whole)
{
    struct before b;
    struct taio_stat st;
    watch_begin(local, &b);
    int64_t rc = open_known(local, dir, path, 0, resolve, &st);
    if (rc >= 0) {
        close((int)rc);
        rc = -EAGAIN;
        uint64_t left = st.size > offset ? (uint64_t)(st.size - offset) : 0;
        if (S_ISREG(st.mode) && (!whole || left <= size)) {
            int fd = open_cached(dir, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, resolve);
            rc = fd;
            if (fd >= 0) {
                taio_forget_cached(fd); /* the last file with this number was another one */
                if (left > 0 && sets_access_time(fd, &st))
                    rc = -EAGAIN;
                else if (left < size || whole)
                    rc = read_cached(fd, out, left + 1, offset, left); /* a byte more: the file ends there */
                else
                    rc = read_cached(fd, out, size, offset, size);
                close(fd);
            }
        }
    }
    return watch_end(local, &b, rc, 0);
}

int taio_inline_close(int fd)
{
    struct statx s;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_NLINK, &s) < 0 || s.stx_nlink == 0)
        return -EAGAIN; /* the file was unlinked, and the last close frees it: 50 ms for 300 MiB */
    return close(fd) < 0 && errno != EINTR ? -errno : 0;
}
