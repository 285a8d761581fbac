/* Whole files by path: written in place, or atomically under a temporary name; read in part; many small ones in one request.
 *
 * How the kernel works. A name is replaced at once by rename(2), so readers see the old file or the new one, never a part. But the new file has
 * a name of its own before that, which remains if the process is killed. A file made with O_TMPFILE has none; linkat(2) can give it one, but
 * cannot replace another.
 *
 * What we do about it. The file is made with O_TMPFILE where the filesystem has it, and gets a temporary name right before the rename. What
 * must not replace anything is linked directly. Elsewhere it has a temporary name from the start. */
#include "native.h"
#include "names_parts.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

enum { MOST_LINKS = 40, MOST_TRIES = 100 };

/* ---- a new file in the place of a name */

static void make_temporary_name(struct taio_new *file)
{
    unsigned long long number = 0;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        number = (unsigned long long)now.tv_nsec << 32 ^ (unsigned long long)now.tv_sec ^ (unsigned long long)(uintptr_t)file;
    }
    snprintf(file->temporary, sizeof file->temporary, ".trio-aio-%016llx.tmp", number);
}

/* Open the directory of `path`, and copy its last component. Returns an fd, or -errno; -EEXIST if the path is that of a directory whatever it
 * is called: it ends with "." or "..", or has no component. */
static int open_directory_of(int dir, const char *path, char *last, int beneath)
{
    size_t length = strlen(path), end = length, start;
    while (end > 0 && path[end - 1] == '/')
        end--;
    for (start = end; start > 0 && path[start - 1] != '/';)
        start--;
    size_t size = end - start;
    int fd;
    if (size == 0 || (size <= 2 && memcmp(path + start, "..", size) == 0)) {
        fd = beneath ? taio_open_beneath(dir, path, O_PATH, 0) : openat(dir, path, O_PATH | O_CLOEXEC);
        if (fd < 0)
            return beneath ? fd : -errno;
        close(fd);
        return -EEXIST;
    }
    if (size >= 256)
        return -ENAMETOOLONG;
    memcpy(last, path + start, size);
    last[size] = 0;
    char *parent = NULL;
    if (beneath)
        fd = taio_open_parent(dir, path, &parent);
    else {
        parent = start == 0 ? strdup(".") : strndup(path, start);
        fd = parent == NULL ? -ENOMEM : openat(dir, parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (parent != NULL && fd < 0)
            fd = -errno;
    }
    free(parent);
    if (fd >= 0 && end < length) { /* only a directory has a slash behind its name */
        close(fd);
        fd = -EISDIR;
    }
    return fd;
}

/* Find the directory and the name that a file will get, through links if `follow`. Returns 0, or -errno. */
static int find_place(struct taio_new *file, int dir, const char *path, int follow, int beneath)
{
    char target[PATH_MAX];
    int from = dir;
    for (int links = 0;; links++) {
        int parent = open_directory_of(from, path, file->last, beneath);
        if (from != dir)
            close(from);
        if (parent < 0)
            return parent;
        ssize_t n = follow && !beneath ? readlinkat(parent, file->last, target, sizeof target - 1) : -1;
        if (n < 0) {
            file->parent = parent;
            return 0;
        }
        if (links == MOST_LINKS) {
            close(parent);
            return -ELOOP;
        }
        target[n] = 0;
        path = target;
        from = parent;
    }
}

/* Find the place of a new file, and what is there. `exclusive`: it must be nothing. Returns 0, or -errno. */
static int look_at_place(struct taio_new *file, int dir, const char *path, int follow, int beneath, int exclusive)
{
    file->fd = file->parent = -1;
    file->named = 0;
    int error = find_place(file, dir, path, follow && !exclusive, beneath);
    if (error == 0)
        file->exists = taio_statx(file->parent, file->last, AT_SYMLINK_NOFOLLOW, &file->old, NULL) == 0;
    if (error == 0 && exclusive && file->exists)
        return -EEXIST;
    return error == -EEXIST && !exclusive ? -EISDIR : error;
}

int taio_new_begin(struct taio_new *file, int dir, const char *path, unsigned mode, int follow, int beneath, int exclusive)
{
    int error = look_at_place(file, dir, path, follow, beneath, exclusive);
    if (error < 0)
        return error;
    int replaces = file->exists && S_ISREG(file->old.mode);
    if (file->exists && !replaces && !S_ISLNK(file->old.mode))
        return S_ISDIR(file->old.mode) ? -EISDIR : -EOPNOTSUPP;
    file->fd = openat(file->parent, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode);
    for (int tries = 0; file->fd < 0 && tries < MOST_TRIES; tries++) {
        if (tries == 0 && errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL && errno != ENOENT)
            return -errno;
        make_temporary_name(file);
        file->fd = openat(file->parent, file->temporary, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, mode);
        file->named = file->fd >= 0;
        if (file->fd < 0 && errno != EEXIST)
            return -errno;
    }
    if (file->fd < 0)
        return -EEXIST;
    if (replaces) {
        if (fchown(file->fd, (uid_t)file->old.uid, (gid_t)file->old.gid) < 0 && errno != EPERM && errno != EINVAL)
            return -errno;
        if (fchmod(file->fd, file->old.mode & 07777) < 0 && errno != EPERM)
            return -errno;
    }
    return 0;
}

int taio_new_special(struct taio_new *file, int dir, const char *path, const struct taio_stat *like, const char *target, int exclusive)
{
    int error = look_at_place(file, dir, path, 0, 0, exclusive);
    if (error < 0)
        return error;
    if (file->exists && S_ISDIR(file->old.mode))
        return -EISDIR;
    for (int tries = 0; tries < MOST_TRIES; tries++) {
        make_temporary_name(file);
        int rc = target != NULL ? symlinkat(target, file->parent, file->temporary) : mknodat(file->parent, file->temporary, like->mode, like->rdev);
        file->named = rc == 0;
        if (rc == 0)
            return 0;
        if (errno != EEXIST)
            return -errno;
    }
    return -EEXIST;
}

/* Give a file without a name one. Returns 0, or -errno. */
static int link_fd(int fd, int parent, const char *name)
{
    char path[64];
    if (linkat(fd, "", parent, name, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno != ENOENT && errno != EPERM)
        return -errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd); /* before Linux 6.10 the call above needs a capability */
    return linkat(AT_FDCWD, path, parent, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* Give the file the temporary name, if it has none. */
static int name_temporarily(struct taio_new *file)
{
    int error = file->named ? 0 : -EEXIST;
    for (int tries = 0; error == -EEXIST && tries < MOST_TRIES; tries++) {
        make_temporary_name(file);
        error = link_fd(file->fd, file->parent, file->temporary);
        file->named = error == 0;
    }
    return error;
}

static int publish_exclusively(struct taio_new *file)
{
    if (!file->named)
        return link_fd(file->fd, file->parent, file->last);
    if (syscall(SYS_renameat2, file->parent, file->temporary, file->parent, file->last, RENAME_NOREPLACE) == 0) {
        file->named = 0;
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    return linkat(file->parent, file->temporary, file->parent, file->last, 0) < 0 ? -errno : 0; /* the temporary name goes at the end */
}

int taio_new_publish(struct taio_new *file, int exclusive, int durable)
{
    int error = exclusive ? publish_exclusively(file) : -EEXIST;
    if (!exclusive && !file->named && !file->exists)
        error = link_fd(file->fd, file->parent, file->last); /* nothing to replace, unless it has been made meanwhile */
    if (!exclusive && error == -EEXIST) {
        error = name_temporarily(file);
        if (error == 0 && renameat(file->parent, file->temporary, file->parent, file->last) < 0)
            error = -errno;
        else if (error == 0)
            file->named = 0;
    }
    if (error == 0 && durable) {
        int fd = openat(file->parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        error = fd < 0 || fsync(fd) < 0 ? -errno : 0;
        if (fd >= 0)
            close(fd);
    }
    return error;
}

void taio_new_end(struct taio_new *file)
{
    if (file->named)
        unlinkat(file->parent, file->temporary, 0);
    if (file->fd >= 0)
        close(file->fd);
    if (file->parent >= 0)
        close(file->parent);
    file->fd = file->parent = -1;
    file->named = 0;
}

/* ---- writing and reading */

/* Write all, at `offset`, or at the fd's position if that is negative. Returns 0, or -errno; `moved` counts. */
static int write_all(struct taio_name *n, int fd, int64_t offset)
{
    const char *memory = (const char *)(uintptr_t)n->memory;
    while (n->moved < n->capacity) {
        size_t left = n->capacity - n->moved < 1 << 30 ? n->capacity - n->moved : 1 << 30;
        ssize_t moved = offset < 0 ? write(fd, memory + n->moved, left) : pwrite(fd, memory + n->moved, left, offset + (int64_t)n->moved);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved < 0 ? -errno : -EIO;
        n->moved += (uint64_t)moved;
    }
    return 0;
}

static int64_t write_atomically(struct taio_name *n, const char *path)
{
    struct taio_new file = {.parent = -1, .fd = -1};
    int durable = (n->flags & TAIO_DURABLE) != 0, exclusive = (n->flags & TAIO_EXCLUSIVE) != 0;
    int error = taio_new_begin(&file, n->dir, path, n->mode, 1, n->beneath, exclusive);
    if (file.exists)
        n->stat = file.old;
    if (error == 0)
        error = write_all(n, file.fd, -1);
    if (error == 0 && durable && fsync(file.fd) < 0)
        error = -errno;
    if (error == 0)
        error = taio_new_publish(&file, exclusive, durable);
    if (error < 0)
        n->moved = 0; /* what was written is nowhere */
    taio_new_end(&file);
    return error < 0 ? error : (int64_t)n->moved;
}

/* Make the entry of a new name durable, where a link has led to it too. */
static int sync_parent(struct taio_name *n, const char *path)
{
    struct taio_new file;
    int error = find_place(&file, n->dir, path, 1, n->beneath);
    if (error < 0)
        return error;
    int fd = openat(file.parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    error = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    close(file.parent);
    return error;
}

/* Return whether `path` exists, and what it is: looked at, not opened. */
static int look(struct taio_name *n, const char *path, struct stat *st)
{
    if (!n->beneath)
        return fstatat(n->dir, path, st, 0) == 0;
    int fd = taio_open_beneath(n->dir, path, O_PATH, 0);
    int found = fd >= 0 && fstat(fd, st) == 0;
    if (fd >= 0)
        close(fd);
    return found;
}

/* What `path` is, is asked twice: before it is opened, and once it is open. */
int taio_open_file(struct taio_name *n, const char *path, int flags)
{
    struct stat st;
    if (look(n, path, &st)) {
        n->stat.mode = st.st_mode;
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode) && !S_ISDIR(st.st_mode))
            return flags & O_EXCL ? -EEXIST : -EOPNOTSUPP;
    }
    int how = flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    int fd = n->beneath ? taio_open_beneath(n->dir, path, how, n->mode) : openat(n->dir, path, how, n->mode);
    if (fd < 0 && !n->beneath)
        fd = -errno;
    if (fd == -EAGAIN && !n->beneath) { /* another process holds a lease: wait for it */
        fd = openat(n->dir, path, flags | O_NOCTTY | O_CLOEXEC, n->mode);
        fd = fd < 0 ? -errno : fd;
    }
    if (fd < 0)
        return fd;
    int error = taio_statx(fd, "", AT_EMPTY_PATH, &n->stat, NULL);
    if (error == 0 && !S_ISREG(n->stat.mode) && !S_ISBLK(n->stat.mode))
        error = S_ISDIR(n->stat.mode) ? -EISDIR : -EOPNOTSUPP;
    if (error < 0) {
        close(fd);
        return error;
    }
    return fd;
}

int64_t taio_name_write(struct taio_name *n, const char *path)
{
    int append = n->flags & TAIO_APPEND_TO, at_offset = n->flags & TAIO_AT_OFFSET, exclusive = n->flags & TAIO_EXCLUSIVE;
    struct stat st;
    if (n->flags & TAIO_ATOMIC)
        return write_atomically(n, path);
    int was_there = look(n, path, &st);
    int fd = taio_open_file(n, path, O_WRONLY | O_CREAT | (append ? O_APPEND : at_offset ? 0 : O_TRUNC) | (exclusive ? O_EXCL : 0));
    if (fd < 0)
        return fd;
    int error = write_all(n, fd, at_offset ? n->number : -1);
    if (error == 0 && (n->flags & TAIO_DURABLE) && fdatasync(fd) < 0)
        error = -errno;
    if (close(fd) < 0 && errno != EINTR && error == 0)
        error = -errno;
    if (error == 0 && (n->flags & TAIO_DURABLE) && !was_there)
        error = sync_parent(n, path);
    return error < 0 ? error : (int64_t)n->moved;
}

/* Read `capacity` bytes, fewer only at the end. A read that ends where the file ended when it was opened, at `size`, needs no other one that
 * returns 0. Returns their number, or -errno. */
static int64_t read_all(int fd, char *memory, uint64_t capacity, int64_t offset, int64_t size)
{
    uint64_t done = 0;
    while (done < capacity) {
        size_t left = capacity - done < 1 << 30 ? capacity - done : 1 << 30;
        ssize_t moved = pread(fd, memory + done, left, offset + (int64_t)done);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < 0)
            return -errno;
        done += (uint64_t)moved;
        if (moved == 0 || (size > 0 && (size_t)moved < left && offset + (int64_t)done == size))
            break;
    }
    return (int64_t)done;
}

int64_t taio_name_read(struct taio_name *n, const char *path)
{
    int fd = taio_open_file(n, path, O_RDONLY);
    if (fd < 0)
        return fd;
    uint64_t file = taio_file_of(n->stat.device, n->stat.inode), left = taio_read_begins(file);
    int64_t rc = read_all(fd, (char *)(uintptr_t)n->memory, n->capacity, n->number, S_ISREG(n->stat.mode) ? n->stat.size : 0);
    if (rc > 0)
        taio_read_has_ended(file, fd, left);
    close(fd);
    return rc;
}

int64_t taio_name_read_many(struct taio_name *n)
{
    struct taio_many *many = (struct taio_many *)(uintptr_t)n->memory;
    const char *name = (const char *)(uintptr_t)many->names;
    int64_t *results = (int64_t *)(uintptr_t)many->results;
    char *data = (char *)(uintptr_t)many->data;
    uint64_t used = 0;
    for (many->done = 0; many->done < many->count; many->done++, name += strlen(name) + 1) {
        int fd = taio_open_file(n, name, O_RDONLY);
        int64_t size = fd;
        if (fd >= 0) {
            uint64_t room = many->capacity - used;
            size = (uint64_t)n->stat.size < room ? read_all(fd, data + used, room, 0, n->stat.size) : -EFBIG;
            close(fd);
            if (size == (int64_t)room)
                size = -EFBIG; /* it may be longer: files of /proc have no size */
        }
        if (size == -EFBIG && used > 0)
            break; /* the next request has more room */
        results[many->done] = size;
        used += size > 0 ? (uint64_t)size : 0;
    }
    return (int64_t)used;
}

int64_t taio_name_temporary(struct taio_name *n, const char *path)
{
    struct taio_new file = {.parent = -1, .fd = -1};
    int flags = n->flags | O_CLOEXEC;
    int fd = openat(n->dir, path, O_TMPFILE | O_EXCL | flags, n->mode);
    if (fd < 0 && errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL && errno != ENOENT)
        return -errno;
    if (fd < 0) {
        file.parent = openat(n->dir, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (file.parent < 0)
            return -errno;
        for (int tries = 0; fd < 0 && tries < MOST_TRIES; tries++) {
            make_temporary_name(&file);
            fd = openat(file.parent, file.temporary, O_CREAT | O_EXCL | flags, n->mode);
            if (fd < 0 && errno != EEXIST)
                break;
        }
        int error = errno;
        if (fd >= 0)
            unlinkat(file.parent, file.temporary, 0);
        close(file.parent);
        if (fd < 0)
            return -error;
    }
    int error = n->memory ? taio_describe(fd, (struct taio_description *)(uintptr_t)n->memory) : 0;
    if (error < 0)
        close(fd);
    else
        n->fd = fd;
    return error;
}
