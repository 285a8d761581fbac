/* Calls on names, made by workers: one request each, however many system calls it takes. native.h and names.h say what each does.
 *
 * How the kernel works. The kernel resolves a path anew in every call, and another process may rename its components meanwhile. openat2(2)
 * with RESOLVE_BENEATH guarantees that a path stays below a directory, but no call that changes a name has such a flag.
 *
 * What we do about it. A `beneath` request opens the parent of its name with openat2 and O_PATH, and passes that fd and the last component,
 * which has no slash, to the *at call. Kernels before 5.6 have no openat2, and sandboxes may forbid it: then the components are opened one by
 * one, and no link is followed. */
#include "native.h"
#include "names_parts.h"

#include <grp.h>
#include <linux/stat.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Linux 6.8, newer than the oldest headers we build with. */
#define STATX_MNT_ID_ 0x1000u
#define STATX_MNT_ID_UNIQUE_ 0x4000u
#define STX_MNT_ID 0x90

static const uint64_t inside = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;

/* The result of a system call that returns -1 and sets errno. */
static int64_t result(int64_t n)
{
    return n < 0 ? -errno : n;
}

/* Return what says on which mount a file lies. */
static uint64_t key_of(const struct statx *s)
{
    uint64_t key = makedev(s->stx_dev_major, s->stx_dev_minor);
    if (s->stx_mask & STATX_MNT_ID_UNIQUE_) { /* never used again, as the number of a device is. The top bit keeps the two apart */
        memcpy(&key, (const char *)s + STX_MNT_ID, sizeof key);
        key |= (uint64_t)1 << 63;
    }
    return key;
}

int taio_statx(int dir, const char *path, int flags, struct taio_stat *out, uint64_t *key)
{
    struct statx s;
    if (syscall(SYS_statx, dir, path, flags, STATX_BASIC_STATS | STATX_MNT_ID_UNIQUE_, &s) < 0)
        return -errno;
    *out = (struct taio_stat){.mode = s.stx_mode, .inode = s.stx_ino, .device = makedev(s.stx_dev_major, s.stx_dev_minor),
                              .links = s.stx_nlink, .uid = s.stx_uid, .gid = s.stx_gid,
                              .rdev = makedev(s.stx_rdev_major, s.stx_rdev_minor), .block_size = s.stx_blksize, .blocks = s.stx_blocks,
                              .size = (int64_t)s.stx_size, .atime_ns = taio_nanoseconds(s.stx_atime), .mtime_ns = taio_nanoseconds(s.stx_mtime),
                              .ctime_ns = taio_nanoseconds(s.stx_ctime)};
    if (key != NULL)
        *key = key_of(&s);
    return 0;
}

int taio_mount_of(int fd, uint64_t *key)
{
    struct statx s;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID_UNIQUE_, &s) < 0)
        return -errno;
    *key = key_of(&s);
    return 0;
}

int taio_openat2(int dir, const char *path, int flags, unsigned mode, uint64_t resolve)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)flags | O_CLOEXEC, .mode = flags & O_CREAT ? mode : 0, .resolve = resolve};
    long fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

/* Open the directory that `path` names, one component after the other, without following links. Returns an fd with O_PATH, or -errno.
 * `..` starts again with the shorter path: openat(fd, "..") could leave after a rename. */
static int walk_beneath(int dir, const char *path)
{
    size_t room = strlen(path) + 1, kept = 0;
    char *walked = malloc(2 * room), *part = walked + room;
    int at = walked == NULL ? -1 : openat(dir, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) {
        int error = walked == NULL ? -ENOMEM : -errno;
        free(walked);
        return error;
    }
    while (at >= 0 && *path) {
        size_t length = strcspn(path, "/");
        memcpy(part, path, length);
        part[length] = 0;
        path += length + (path[length] == '/');
        if (length == 0 || strcmp(part, ".") == 0)
            continue;
        int next;
        if (strcmp(part, "..") == 0) {
            while (kept > 0 && walked[--kept] != '/')
                ;
            walked[kept] = 0;
            next = walk_beneath(dir, walked);
        } else {
            next = openat(at, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            struct stat st;
            if (next < 0)
                next = errno == ENOTDIR && fstatat(at, part, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode) ? -ELOOP : -errno;
            else {
                if (kept > 0)
                    walked[kept++] = '/';
                memcpy(walked + kept, part, length + 1);
                kept += length;
            }
        }
        close(at);
        at = next;
    }
    free(walked);
    return at;
}

/* Return -EXDEV if the components of `path` lead above its start. */
static int climbs(const char *path)
{
    int64_t depth = 0;
    if (*path == '/')
        return -EXDEV;
    while (*path) {
        size_t length = strcspn(path, "/");
        if (length == 2 && path[0] == '.' && path[1] == '.') {
            if (--depth < 0)
                return -EXDEV;
        } else if (length > 0 && !(length == 1 && *path == '.'))
            depth++;
        path += length + (path[length] == '/');
    }
    return 0;
}

/* Split a path behind its last slash that is followed by a component. Returns the start of the last component. */
static const char *last_component(const char *path, size_t length)
{
    while (length > 0 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    return path + length;
}

int taio_open_parent(int dir, const char *path, char **last)
{
    size_t length = strlen(path);
    const char *name = last_component(path, length);
    char *copy = malloc(2 * length + 4), *parent = copy;
    if (copy == NULL)
        return -ENOMEM;
    memcpy(parent, path, (size_t)(name - path));
    strcpy(parent + (name - path), name == path ? "." : "");
    *last = strcpy(copy + length + 3, name);
    for (size_t end = strlen(*last); end > 1 && (*last)[end - 1] == '/'; end--) /* no `*at` call follows a name with a slash at its end */
        (*last)[end - 1] = 0;
    int fd = -ENOENT;
    if (*path == '/')
        fd = -EXDEV;
    else if (strcmp(*last, "..") == 0)
        fd = -EINVAL;
    else if (**last)
        fd = taio_open_beneath(dir, parent, O_PATH | O_DIRECTORY, 0);
    if (fd < 0) {
        free(copy);
        *last = NULL;
    } else
        *last = memmove(copy, *last, strlen(*last) + 1); /* the caller frees it */
    return fd;
}

int taio_open_beneath(int dir, const char *path, int flags, unsigned mode)
{
    int fd;
    for (int tries = 0; (fd = taio_openat2(dir, path, flags, mode, inside)) == -EAGAIN && tries < 1 << 16; tries++)
        sched_yield(); /* something was renamed at the same time, and the kernel cannot say whether the path stayed inside */
    if (fd != -ENOSYS && fd != -EPERM)
        return fd;
    int climbed = climbs(path);
    if (climbed != 0)
        return climbed;
    if (*path == 0)
        return -ENOENT;
    const char *name = last_component(path, strlen(path));
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strchr(name, '/') != NULL) {
        int walked = walk_beneath(dir, path);
        if (walked < 0 || (flags & O_PATH))
            return walked;
        fd = openat(walked, ".", flags | O_CLOEXEC, mode);
        int error = errno;
        close(walked);
        return fd < 0 ? -error : fd;
    }
    char *parent = strndup(path, (size_t)(name - path));
    if (parent == NULL)
        return -ENOMEM;
    int walked = walk_beneath(dir, parent);
    free(parent);
    if (walked < 0)
        return walked;
    fd = openat(walked, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
    int error = errno;
    struct stat st;
    if (fd < 0 && error == ENOTDIR && fstatat(walked, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode))
        error = ELOOP; /* O_DIRECTORY and O_NOFOLLOW say ENOTDIR of a link */
    if (fd >= 0 && (flags & O_PATH) && !(flags & O_NOFOLLOW) && fstat(fd, &st) == 0 && S_ISLNK(st.st_mode)) {
        close(fd); /* with O_PATH and O_NOFOLLOW the link itself was opened */
        fd = -1;
        error = ELOOP;
    }
    close(walked);
    return fd < 0 ? -error : fd;
}

/* Ask for the attributes once more, now that they are in memory, and never from memory alone. If that sleeps, they live on a server. */
static void probe(struct taio_name *n, int dir, const char *path)
{
    struct taio_stat again;
    uint64_t key;
    int fd = openat(dir, path, O_PATH | O_CLOEXEC | (n->flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0));
    if (fd < 0) {
        n->key = 0; /* nothing was found out: EMFILE, or the name has gone */
        return;
    }
    taio_statx(fd, "", AT_EMPTY_PATH, &again, &key);
    long before = taio_times_slept();
    taio_statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, &again, &key);
    n->slept = taio_times_slept() > before;
    if (key != n->key)
        n->key = 0; /* the name refers to something else by now */
    close(fd);
}

static int64_t name_stat(struct taio_name *n, int dir, const char *path)
{
    int error = taio_statx(dir, path, n->flags, &n->stat, &n->key);
    if (error == 0 && n->probe)
        probe(n, dir, path);
    return error;
}

static int64_t name_access(struct taio_name *n, int dir, const char *path)
{
    long rc = syscall(SYS_faccessat2, dir, path, n->mode, n->flags);
    if (rc < 0 && errno == ENOSYS && n->flags == 0)
        rc = faccessat(dir, path, (int)n->mode, 0);
    return result(rc);
}

/* Read a link whose target has at most `capacity` bytes. A longer one is ENAMETOOLONG, never cut. */
static int64_t name_readlink(struct taio_name *n, int dir, const char *path)
{
    ssize_t length = readlinkat(dir, path, (char *)(uintptr_t)n->memory, n->capacity);
    return length == (ssize_t)n->capacity ? -ENAMETOOLONG : result(length);
}

static int64_t name_chmod(struct taio_name *n, int dir, const char *path)
{
    if (!(n->flags & AT_SYMLINK_NOFOLLOW))
        return result(*path ? fchmodat(dir, path, n->mode, 0) : fchmod(dir, n->mode));
#ifdef SYS_fchmodat2
    long rc = syscall(SYS_fchmodat2, dir, path, n->mode, n->flags); /* Linux 6.6 */
    if (rc == 0 || errno != ENOSYS)
        return result(rc);
#endif
    return result(fchmodat(dir, path, n->mode, n->flags)); /* the C library goes through /proc */
}

static int64_t name_utime(struct taio_name *n, int dir, const char *path)
{
    struct timespec times[2] = {{n->times[0], n->times[1]}, {n->times[2], n->times[3]}};
    if (*path == 0)
        return result(futimens(dir, n->number ? NULL : times));
    return result(utimensat(dir, path, n->number ? NULL : times, n->flags));
}

/* Open for a call that takes an fd or a path from the working directory only. Returns an fd, or -errno. */
static int64_t with_fd(int dir, const char *path, int flags, int64_t (*call)(int, struct taio_name *), struct taio_name *n)
{
    int fd = *path ? openat(dir, path, flags | O_CLOEXEC) : dir;
    if (fd < 0)
        return *path ? -errno : -EBADF;
    int64_t rc = call(fd, n);
    if (*path)
        close(fd);
    return rc;
}

static int64_t statvfs_fd(int fd, struct taio_name *n)
{
    struct statvfs s;
    if (fstatvfs(fd, &s) < 0)
        return -errno;
    uint64_t values[] = {s.f_bsize, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_favail, s.f_flag, s.f_namemax,
                         s.f_fsid};
    memcpy((void *)(uintptr_t)n->memory, values, sizeof values);
    return 0;
}

static int64_t sync_fd(int fd, struct taio_name *n)
{
    (void)n;
    return result(fsync(fd));
}

/* The calls for extended attributes take no directory fd: /proc has a path for each fd. */
static int64_t name_xattr(struct taio_name *n, int dir, const char *path)
{
    char by_fd[64];
    const char *attribute = (const char *)(uintptr_t)n->path2;
    void *memory = (void *)(uintptr_t)n->memory;
    int link = (n->flags & AT_SYMLINK_NOFOLLOW) != 0;
    if (*path == 0) {
        if (fcntl(dir, F_GETFD) < 0)
            return -errno; /* /proc would say ENOENT */
        snprintf(by_fd, sizeof by_fd, "/proc/self/fd/%d", dir);
        path = by_fd;
        link = 0;
    }
    switch (n->call) {
    case TAIO_NAME_GETXATTR:
        return result((link ? lgetxattr : getxattr)(path, attribute, memory, n->capacity));
    case TAIO_NAME_SETXATTR:
        return result((link ? lsetxattr : setxattr)(path, attribute, memory, n->capacity, (int)n->number));
    case TAIO_NAME_LISTXATTR:
        return result((link ? llistxattr : listxattr)(path, memory, n->capacity));
    default:
        return result((link ? lremovexattr : removexattr)(path, attribute));
    }
}

/* Copy a string of the user database to the request's memory, and free what it lies in. */
static int64_t answer(struct taio_name *n, const char *text, int error, void *lies_in)
{
    size_t length = text == NULL ? 0 : strlen(text);
    int64_t rc = error ? -error : length > n->capacity ? -ERANGE : (int64_t)length;
    if (rc > 0)
        memcpy((void *)(uintptr_t)n->memory, text, length);
    free(lies_in);
    return rc;
}

/* Ask the user database. It may be on a network. */
static int64_t name_database(struct taio_name *n, const char *path)
{
    struct passwd user, *found_user = NULL;
    struct group group, *found_group = NULL;
    size_t size = 1 << 20; /* a group may have many members */
    char *memory = malloc(size);
    int error = 0;
    if (memory == NULL)
        return -ENOMEM;
    if (n->call == TAIO_NAME_HOME) {
        error = *path ? getpwnam_r(path, &user, memory, size, &found_user) : getpwuid_r(getuid(), &user, memory, size, &found_user);
        return answer(n, found_user == NULL ? NULL : user.pw_dir, found_user == NULL && error != ENOENT ? error : 0, memory);
    }
    error = -taio_statx(n->dir, path, n->flags, &n->stat, NULL);
    if (error != 0)
        return answer(n, NULL, error, memory);
    if (n->call == TAIO_NAME_OWNER) {
        n->number = (int64_t)n->stat.uid;
        error = getpwuid_r((uid_t)n->stat.uid, &user, memory, size, &found_user);
        return answer(n, found_user == NULL ? NULL : user.pw_name, found_user == NULL && error != ENOENT ? error : 0, memory);
    }
    n->number = (int64_t)n->stat.gid;
    error = getgrgid_r((gid_t)n->stat.gid, &group, memory, size, &found_group);
    return answer(n, found_group == NULL ? NULL : group.gr_name, found_group == NULL && error != ENOENT ? error : 0, memory);
}

/* Make a file, or set the times of one that exists to now: as pathlib's `touch`. */
static int64_t name_touch(struct taio_name *n, int dir, const char *path)
{
    if ((n->flags & TAIO_EXIST_OK) && utimensat(dir, path, NULL, 0) == 0)
        return 0;
    /* O_NONBLOCK: the name may be that of a FIFO by now. */
    int fd = openat(dir, path, O_CREAT | O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (n->flags & TAIO_EXIST_OK ? 0 : O_EXCL), n->mode);
    if (fd < 0)
        return -errno;
    close(fd);
    return 0;
}

static int64_t name_open(struct taio_name *n, int dir, const char *path)
{
    struct taio_description *description = (struct taio_description *)(uintptr_t)n->memory;
    if (description != NULL) {
        int fd = taio_open_file(n, path, n->flags);
        int error = fd < 0 ? fd : taio_describe(fd, description);
        if (error == 0 && fcntl(fd, F_SETFL, description->open_flags & ~(unsigned)O_NONBLOCK) < 0)
            error = -errno;
        if (error == 0) {
            description->open_flags &= ~(uint32_t)O_NONBLOCK;
            n->fd = fd;
        } else if (fd >= 0)
            close(fd);
        return error;
    }
    int fd = n->beneath ? taio_open_beneath(dir, path, n->flags, n->mode) : openat(dir, path, n->flags | O_CLOEXEC, n->mode);
    if (fd < 0)
        return n->beneath ? fd : -errno;
    n->fd = fd;
    return 0;
}

static int64_t name_rename(struct taio_name *n, int dir, const char *path, int dir2, const char *path2)
{
    if (n->flags == 0)
        return result(renameat(dir, path, dir2, path2));
    return result(syscall(SYS_renameat2, dir, path, dir2, path2, n->flags));
}

/* Make a call, now that its paths are safe to use. */
static int64_t run_call(struct taio_name *n, int dir, const char *path, int dir2, const char *path2)
{
    switch (n->call) {
    case TAIO_NAME_STAT:
        return name_stat(n, dir, path);
    case TAIO_NAME_ACCESS:
        return name_access(n, dir, path);
    case TAIO_NAME_READLINK:
        return name_readlink(n, dir, path);
    case TAIO_NAME_LIST:
        return taio_name_list(n);
    case TAIO_NAME_UNLINK:
        return result(unlinkat(dir, path, n->flags));
    case TAIO_NAME_MKDIR:
        return taio_name_mkdir(n, dir, path);
    case TAIO_NAME_REMOVEDIRS:
        return taio_name_removedirs(dir, path);
    case TAIO_NAME_RENAME:
        return name_rename(n, dir, path, dir2, path2);
    case TAIO_NAME_RENAMES:
        return taio_name_renames(n);
    case TAIO_NAME_LINK:
        return result(linkat(dir, path, dir2, path2, n->flags));
    case TAIO_NAME_SYMLINK:
        return result(symlinkat(path2, dir, path));
    case TAIO_NAME_CHMOD:
        return name_chmod(n, dir, path);
    case TAIO_NAME_CHOWN:
        return result(*path ? fchownat(dir, path, n->uid, n->gid, n->flags) : fchown(dir, n->uid, n->gid));
    case TAIO_NAME_UTIME:
        return name_utime(n, dir, path);
    case TAIO_NAME_TRUNCATE:
        if ((*path ? truncate(path, n->number) : ftruncate(dir, n->number)) < 0)
            return -errno;
        taio_statx(dir, path, *path ? 0 : AT_EMPTY_PATH, &n->stat, NULL); /* so that the caller knows which file has changed */
        return 0;
    case TAIO_NAME_STATVFS:
        return with_fd(dir, path, O_PATH, statvfs_fd, n);
    case TAIO_NAME_SYNC:
        return with_fd(dir, path, O_RDONLY | O_DIRECTORY, sync_fd, n);
    case TAIO_NAME_MKNOD:
        return result(mknodat(dir, path, n->mode, (dev_t)n->number));
    case TAIO_NAME_GETXATTR:
    case TAIO_NAME_SETXATTR:
    case TAIO_NAME_LISTXATTR:
    case TAIO_NAME_REMOVEXATTR:
        return name_xattr(n, dir, path);
    case TAIO_NAME_REALPATH:
        return taio_name_realpath(n);
    case TAIO_NAME_TOUCH:
        return name_touch(n, dir, path);
    case TAIO_NAME_OPEN:
        return name_open(n, dir, path);
    case TAIO_NAME_OWNER:
    case TAIO_NAME_GROUP:
    case TAIO_NAME_HOME:
        return name_database(n, path);
    case TAIO_NAME_WRITE:
        return taio_name_write(n, path);
    case TAIO_NAME_READ:
        return taio_name_read(n, path);
    case TAIO_NAME_COPY:
        return taio_name_copy(n, path, path2);
    case TAIO_NAME_DISCARD:
        return taio_name_discard(n);
    case TAIO_NAME_METADATA:
        return taio_name_metadata(n, path, path2);
    case TAIO_NAME_UNLINK_MANY:
        return taio_name_unlink_many(n, n->path ? path : ".");
    case TAIO_NAME_READ_MANY:
        return taio_name_read_many(n);
    case TAIO_NAME_TEMPORARY:
        return taio_name_temporary(n, path);
    case TAIO_NAME_CLOSE:
        return close(n->fd) < 0 && errno != EINTR ? -errno : 0;
    default:
        return -ENOSYS;
    }
}

static int64_t run_beneath(struct taio_name *n, const char *path, const char *path2);

/* Make a directory and its missing parents, each by a call that stays beneath the directory. */
static int64_t mkdir_beneath(struct taio_name *n, const char *path)
{
    struct taio_name one = *n;
    char *copy = strdup(path);
    int64_t rc = copy == NULL ? -ENOMEM : 0;
    for (size_t at = 0; rc == 0 && path[at];) {
        size_t start = at + strspn(path + at, "/"), end = start + strcspn(path + start, "/");
        int last = path[end + strspn(path + end, "/")] == 0;
        at = end;
        if (strncmp(path + start, "..", end - start) == 0 && !last) /* also "." and the empty name: nothing to make */
            continue;
        copy[end] = 0;
        one.flags = last ? n->flags & TAIO_EXIST_OK : TAIO_EXIST_OK;
        one.mode = last ? n->mode : 0777;
        rc = run_beneath(&one, copy, NULL);
        copy[end] = path[end];
        n->failed = rc < 0 && !last ? (uint32_t)end : 0;
        if (last)
            break;
    }
    free(copy);
    return rc;
}

/* A path as a call uses it: as it was given; or, if it must stay beneath its directory, the open parent and the last component. */
struct place {
    int dir;
    const char *name;
    char *last; /* to be freed, and then `dir` is to be closed; or NULL */
    int slash;  /* one followed the last component */
};

static int enter(struct place *place, int dir, const char *path, int beneath)
{
    *place = (struct place){.dir = dir, .name = path};
    if (!beneath)
        return 0;
    int fd = taio_open_parent(dir, path, &place->last);
    if (fd < 0)
        return fd;
    place->dir = fd;
    place->name = place->last;
    place->slash = path[strlen(path) - 1] == '/';
    return 0;
}

static void leave(struct place *place)
{
    if (place->last != NULL)
        close(place->dir);
    free(place->last);
}

/* Return 0 if a name is a directory, or -errno. */
static int check_directory(const struct place *place)
{
    struct stat st;
    if (fstatat(place->dir, place->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

/* A slash behind a name says that it is a directory, or becomes one. It was cut off, because `*at` calls follow a link that has one. */
static int check_slashes(const struct taio_name *n, const struct place *first, const struct place *second)
{
    int renames = n->call == TAIO_NAME_RENAME, exchanges = renames && (n->flags & RENAME_EXCHANGE);
    int error = 0;
    if (n->call == TAIO_NAME_MKDIR)
        return 0;
    if (first->slash || (renames && !exchanges && second->slash))
        error = check_directory(first);
    if (error != -ENOENT && n->call == TAIO_NAME_SYMLINK)
        return 0; /* it exists, which is the error */
    if (error == 0 && second->slash && (exchanges || !renames)) {
        error = check_directory(second);
        if (error != -ENOENT && !renames)
            return 0;
    }
    return error;
}

/* Make a call whose paths must stay beneath their directories. What a call only looks at is opened first, and then named by its fd. */
static int64_t run_beneath(struct taio_name *n, const char *path, const char *path2)
{
    int looks = n->call == TAIO_NAME_STAT || n->call == TAIO_NAME_READLINK;
    if (n->call == TAIO_NAME_OPEN || n->call == TAIO_NAME_LIST || n->call == TAIO_NAME_WRITE || n->call == TAIO_NAME_READ)
        return run_call(n, n->dir, path, n->dir2, path2);
    if (n->call == TAIO_NAME_MKDIR && (n->flags & TAIO_PARENTS))
        return mkdir_beneath(n, path);
    if (looks) {
        int nofollow = n->call == TAIO_NAME_READLINK || (n->flags & AT_SYMLINK_NOFOLLOW);
        int fd = taio_open_beneath(n->dir, path, O_PATH | (nofollow ? O_NOFOLLOW : 0), 0);
        if (fd < 0)
            return fd;
        n->flags = n->call == TAIO_NAME_STAT ? AT_EMPTY_PATH : 0;
        n->probe = 0;
        int64_t rc = run_call(n, fd, "", -1, NULL);
        close(fd);
        return rc == -ENOENT && n->call == TAIO_NAME_READLINK ? -EINVAL : rc; /* readlinkat(fd, "") of what is no link */
    }
    struct place first, second = {.dir = -1};
    int two = n->call == TAIO_NAME_RENAME || n->call == TAIO_NAME_LINK;
    int64_t rc = enter(&first, n->dir, path, n->beneath & 1);
    if (rc == 0)
        rc = enter(&second, n->dir2, path2, two && (n->beneath & 2));
    if (rc == 0)
        rc = check_slashes(n, &first, &second);
    if (rc == 0)
        rc = run_call(n, first.dir, first.name, second.dir, second.name);
    leave(&second);
    leave(&first);
    return rc;
}

int64_t taio_name_run(struct taio_name *n)
{
    const char *path = (const char *)(uintptr_t)n->path, *path2 = (const char *)(uintptr_t)n->path2;
    int64_t rc;
    if (path == NULL) /* the call is for the fd `dir` itself */
        path = "";
    else if (*path == 0 && n->call != TAIO_NAME_REALPATH && n->call != TAIO_NAME_HOME && (n->call != TAIO_NAME_READLINK || n->beneath))
        return -ENOENT; /* readlinkat reads the link that `dir` is then */
    do
        rc = n->beneath ? run_beneath(n, path, path2) : run_call(n, n->dir, path, n->dir2, path2);
    while (rc == -EINTR && n->call < TAIO_NAME_CLOSE); /* the later ones repeat what can be repeated themselves */
    return rc;
}
