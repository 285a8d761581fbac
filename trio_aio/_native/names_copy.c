/* Copies of files, and the removal of many names. names.h says what each call does.
 *
 * A copy is made in pieces of 64 MiB, one request each, so that it can be stopped between two. Filesystems that share blocks copy at once
 * (FICLONE); others copy inside the kernel (copy_file_range), and between two filesystems the bytes go through our memory. Holes stay holes. The
 * target gets its name when all is there: names_whole.c. */
#include "native.h"
#include "names_parts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { BUFFER = 1 << 20 };

static int is_unsupported(int error)
{
    return error == EXDEV || error == EINVAL || error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EBADF;
}

/* Copy bytes through memory. Returns how many, or -errno. */
static int64_t copy_through_memory(int from, int to, int64_t offset, size_t length)
{
    char *memory = malloc(BUFFER);
    size_t done = 0;
    int64_t rc = memory == NULL ? -ENOMEM : 1;
    while (rc > 0 && done < length) {
        size_t part = length - done < BUFFER ? length - done : BUFFER;
        rc = pread(from, memory, part, offset + (int64_t)done);
        if (rc < 0 && errno == EINTR) {
            rc = 1;
            continue;
        }
        for (int64_t at = 0, read = rc, moved; at < read; at += moved) {
            moved = pwrite(to, memory + at, (size_t)(read - at), offset + (int64_t)done + at);
            if (moved < 0 && errno == EINTR)
                moved = 0;
            else if (moved < 0) {
                rc = -1;
                break;
            }
        }
        if (rc > 0)
            done += (size_t)rc;
    }
    rc = rc < 0 && memory != NULL ? -errno : rc < 0 ? -ENOMEM : (int64_t)done;
    free(memory);
    return rc;
}

/* Copy bytes. Returns how many; 0: the source has ended; or -errno. */
static int64_t copy_range(int from, int to, int64_t offset, size_t length)
{
    off_t in = offset, out = offset;
    ssize_t n;
    do
        n = copy_file_range(from, &in, to, &out, length, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0)
        return n;
    if (n < 0 && !is_unsupported(errno))
        return -errno;
    return copy_through_memory(from, to, offset, length); /* also for 0: files of /proc claim to be empty */
}

/* Copy extended attributes, as far as the target takes them. */
static void copy_attributes(int from, int to)
{
    char names[1 << 16], value[1 << 16];
    ssize_t size = flistxattr(from, names, sizeof names);
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1) {
        ssize_t length = fgetxattr(from, names + at, value, sizeof value);
        if (length >= 0)
            (void)!fsetxattr(to, names + at, value, (size_t)length, 0);
    }
}

/* Fill in the times of access and modification. utimensat(2) wants nanoseconds of 0 or more, so a time before 1970 borrows a second. */
static void times_of(const struct taio_stat *from, struct timespec times[2])
{
    int64_t ns[2] = {from->atime_ns, from->mtime_ns};
    for (int i = 0; i < 2; i++) {
        times[i] = (struct timespec){ns[i] / 1000000000, ns[i] % 1000000000};
        if (times[i].tv_nsec < 0) {
            times[i].tv_nsec += 1000000000;
            times[i].tv_sec--;
        }
    }
}

static void preserve(int from, int to, const struct taio_stat *stat)
{
    copy_attributes(from, to);
    (void)!fchmod(to, stat->mode & 07777);
    struct timespec times[2];
    times_of(stat, times);
    futimens(to, times);
}

/* Copy a symbolic link itself, or make a FIFO or a device anew. What has the name is replaced once it exists. Returns 0, or -errno. */
static int64_t copy_special(struct taio_name *n, struct taio_copy *copy, const char *path, const char *path2)
{
    struct taio_new *made = &copy->target;
    char target[PATH_MAX];
    int is_link = S_ISLNK(copy->stat.mode), exclusive = (n->flags & TAIO_EXCLUSIVE) != 0;
    if (is_link) {
        ssize_t length = readlinkat(n->dir, path, target, sizeof target - 1);
        if (length < 0)
            return -errno;
        target[length] = 0;
    }
    int64_t rc = taio_new_special(made, n->dir2, path2, &copy->stat, is_link ? target : NULL, exclusive);
    if (rc == 0 && (n->flags & TAIO_PRESERVE)) {
        struct timespec times[2];
        times_of(&copy->stat, times);
        if (!is_link)
            (void)!fchmodat(made->parent, made->temporary, copy->stat.mode & 07777, 0);
        utimensat(made->parent, made->temporary, times, AT_SYMLINK_NOFOLLOW);
    }
    if (rc == 0)
        rc = taio_new_publish(made, exclusive, (n->flags & TAIO_DURABLE) != 0);
    n->failed = rc < 0; /* it is about the target */
    taio_new_end(made);
    return rc;
}

static int is_same(const struct taio_stat *one, const struct taio_stat *other)
{
    return one->device == other->device && one->inode == other->inode;
}

/* Return whether two names are links with the same text. */
static int are_equal_links(const struct taio_name *n, const char *path, const char *path2)
{
    char one[PATH_MAX], other[PATH_MAX];
    ssize_t length = readlinkat(n->dir, path, one, sizeof one);
    return length >= 0 && readlinkat(n->dir2, path2, other, sizeof other) == length && memcmp(one, other, (size_t)length) == 0;
}

/* Return whether source and target are the same file. Where links are not followed, it is also asked what they lead to: a link that replaced its
 * own target would lead to itself, and the contents would be lost. But a link may replace its equal, as in a tree that is copied twice. */
static int are_same(const struct taio_name *n, const char *path, const char *path2, const struct taio_stat *source)
{
    struct taio_stat from, to;
    int follow = n->flags & TAIO_FOLLOW;
    if (taio_statx(n->dir2, path2, follow ? 0 : AT_SYMLINK_NOFOLLOW, &to, NULL) < 0)
        return 0; /* nothing is replaced */
    if (is_same(source, &to))
        return 1;
    if (follow || (!S_ISLNK(source->mode) && !S_ISLNK(to.mode)))
        return 0;
    return taio_statx(n->dir, path, 0, &from, NULL) == 0 && taio_statx(n->dir2, path2, 0, &to, NULL) == 0 && is_same(&from, &to) &&
           !are_equal_links(n, path, path2);
}

static int64_t copy_begin(struct taio_name *n, struct taio_copy *copy, const char *path, const char *path2)
{
    int follow = n->flags & TAIO_FOLLOW;
    if (*path2 == 0) {
        n->failed = 1;
        return -ENOENT;
    }
    int error = taio_statx(n->dir, path, follow ? 0 : AT_SYMLINK_NOFOLLOW, &copy->stat, NULL);
    if (error < 0)
        return error;
    if (are_same(n, path, path2, &copy->stat))
        return -EALREADY;
    copy->begun = 1;
    if (S_ISLNK(copy->stat.mode))
        return copy_special(n, copy, path, path2);
    if (!S_ISREG(copy->stat.mode)) {
        if (S_ISDIR(copy->stat.mode))
            return -EISDIR;
        return n->number ? copy_special(n, copy, path, path2) : -EOPNOTSUPP; /* `number`: of a tree */
    }
    copy->source = openat(n->dir, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
    if (copy->source < 0)
        return -errno;
    error = taio_statx(copy->source, "", AT_EMPTY_PATH, &copy->stat, NULL);
    if (error == 0 && !S_ISREG(copy->stat.mode))
        error = -EOPNOTSUPP;
    if (error == 0)
        error = taio_new_begin(&copy->target, n->dir2, path2, 0666, follow, 0, (n->flags & TAIO_EXCLUSIVE) != 0);
    if (error < 0) {
        n->failed = 1; /* it is about the target, unless the source is no file */
        return error;
    }
    copy->size = copy->stat.size;
    if (ioctl(copy->target.fd, FICLONE, copy->source) == 0)
        copy->offset = copy->size;
    return 0;
}

/* Copy at most a piece. Returns 1 if there is more, 0 at the end, or -errno. */
static int64_t copy_some(struct taio_copy *copy)
{
    int64_t left = TAIO_COPY_PIECE;
    int in_hole = 0;
    if (copy->size > 0 && copy->offset >= copy->size)
        return 0;
    while (left > 0) {
        off_t data = copy->size > 0 ? lseek(copy->source, copy->offset, SEEK_DATA) : copy->offset, end;
        in_hole = data < 0 && errno == ENXIO;
        if (in_hole)
            break;
        if (data < 0)
            data = copy->offset; /* the filesystem does not know holes */
        end = copy->size > 0 ? lseek(copy->source, data, SEEK_HOLE) : -1;
        int64_t length = end > data ? end - data : left;
        int64_t n = copy_range(copy->source, copy->target.fd, data, (size_t)(length < left ? length : left));
        if (n < 0)
            return n;
        if (n == 0)
            break;
        left -= n;
        copy->offset = data + n;
    }
    if (left <= 0)
        return 1;
    struct stat st; /* the source may have been cut off meanwhile */
    if (in_hole && fstat(copy->source, &st) == 0 && st.st_size > copy->offset) {
        if (ftruncate(copy->target.fd, st.st_size) < 0)
            return -errno;
        copy->offset = st.st_size;
    }
    return 0;
}

int64_t taio_name_discard(struct taio_name *n)
{
    struct taio_copy *copy = (struct taio_copy *)(uintptr_t)n->memory;
    if (copy->source >= 0)
        close(copy->source);
    copy->source = -1;
    taio_new_end(&copy->target);
    return 0;
}

int64_t taio_name_copy(struct taio_name *n, const char *path, const char *path2)
{
    struct taio_copy *copy = (struct taio_copy *)(uintptr_t)n->memory;
    int64_t rc = copy->begun ? 0 : copy_begin(n, copy, path, path2);
    if (rc == 0 && copy->source < 0)
        return 0; /* it was a link */
    if (rc == 0) {
        rc = copy_some(copy);
        n->failed = rc < 0 ? 2 : 0;
    }
    if (rc > 0)
        return rc;
    if (rc == 0 && (n->flags & TAIO_PRESERVE))
        preserve(copy->source, copy->target.fd, &copy->stat);
    if (rc == 0 && (n->flags & TAIO_DURABLE) && fsync(copy->target.fd) < 0)
        rc = -errno;
    if (rc == 0) {
        rc = taio_new_publish(&copy->target, (n->flags & TAIO_EXCLUSIVE) != 0, (n->flags & TAIO_DURABLE) != 0);
        n->failed = rc < 0;
    }
    taio_name_discard(n);
    return rc;
}

int64_t taio_name_metadata(struct taio_name *n, const char *path, const char *path2)
{
    struct taio_stat st;
    int from = openat(n->dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), to = -1;
    int64_t rc = from < 0 ? -errno : 0;
    if (rc == 0) {
        to = openat(n->dir2, path2, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        rc = to < 0 ? -errno : taio_statx(from, "", AT_EMPTY_PATH, &st, NULL);
    }
    if (rc == 0)
        preserve(from, to, &st);
    if (to >= 0)
        close(to);
    if (from >= 0)
        close(from);
    return rc;
}

int64_t taio_name_unlink_many(struct taio_name *n, const char *path)
{
    struct taio_many *many = (struct taio_many *)(uintptr_t)n->memory;
    const char *name = (const char *)(uintptr_t)many->names;
    const uint8_t *removing = (const uint8_t *)(uintptr_t)many->removing;
    int64_t *results = (int64_t *)(uintptr_t)many->results;
    int dir = taio_open_long(n->dir, path, O_PATH | O_DIRECTORY, 1);
    if (dir < 0)
        return dir;
    for (many->done = 0; many->done < many->count; many->done++, name += strlen(name) + 1)
        results[many->done] = unlinkat(dir, name, removing[many->done] ? AT_REMOVEDIR : 0) < 0 ? -errno : 0;
    close(dir);
    return 0;
}
