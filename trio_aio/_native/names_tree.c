/* Calls on names that take several steps: listings, directories with their parents, resolved paths. names.h says what each does.
 *
 * Workers run them. A listing is one request for each 32 KiB of a directory: one getdents64(2) of that size, and one more that finds the end. */
#include "native.h"
#include "names_parts.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LONGEST_PATH = 4000 };

/* ---- opening below a directory ---- */

/* Open `path`, shorter than PATH_MAX, one component after the other, without following links. Returns an fd, or -errno. */
static int open_components(int dir, const char *path, int flags)
{
    char part[NAME_MAX + 1];
    int at = dir, opened = -1;
    for (;;) {
        size_t length = strcspn(path, "/");
        const char *rest = path + length + strspn(path + length, "/");
        if (length > NAME_MAX)
            opened = -ENAMETOOLONG;
        else {
            memcpy(part, path, length);
            part[length] = 0;
            int how = *rest ? O_PATH | O_DIRECTORY : flags;
            opened = openat(at, length == 0 ? "." : part, how | O_NOFOLLOW | O_CLOEXEC);
            if (opened < 0)
                opened = -errno;
        }
        if (at != dir)
            close(at);
        if (opened < 0 || *rest == 0)
            return opened;
        at = opened;
        path = rest;
    }
}

int taio_open_long(int dir, const char *path, int flags, int no_links)
{
    size_t length = strlen(path);
    if (length <= LONGEST_PATH) {
        if (!no_links) {
            int fd = openat(dir, path, flags | O_CLOEXEC);
            return fd < 0 ? -errno : fd;
        }
        int fd = taio_openat2(dir, path, flags, 0, RESOLVE_NO_SYMLINKS);
        return fd == -ENOSYS || fd == -EPERM ? open_components(dir, path, flags) : fd;
    }
    size_t cut = LONGEST_PATH;
    while (cut > 0 && path[cut] != '/')
        cut--;
    if (cut == 0)
        return -ENAMETOOLONG;
    char *start = strndup(path, cut);
    if (start == NULL)
        return -ENOMEM;
    int first = taio_open_long(dir, start, O_PATH | O_DIRECTORY, no_links);
    free(start);
    if (first < 0)
        return first;
    int fd = taio_open_long(first, path + cut + 1, flags, no_links);
    close(first);
    return fd;
}

/* ---- listings ---- */

struct entry { /* struct linux_dirent64 */
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

/* Add an entry to a listing, and look up what readdir did not say. */
static void add_entry(struct taio_list *list, int64_t at, int fd, const struct entry *e)
{
    struct taio_stat unused, *own = list->stats ? (struct taio_stat *)(uintptr_t)list->stats + at : &unused;
    size_t length = strlen(e->name) + 1;
    memcpy(list->names + list->used, e->name, length);
    list->used += length;
    list->inodes[at] = e->inode;
    list->types[at] = e->type;
    list->target[at] = 0;
    if (list->stats)
        memset(own, 0, sizeof *own);
    if ((list->stats || e->type == DT_UNKNOWN) && taio_statx(fd, e->name, AT_SYMLINK_NOFOLLOW, own, NULL) == 0)
        list->types[at] = IFTODT(own->mode); /* otherwise it was removed meanwhile */
    if (list->targets && list->types[at] == DT_LNK) {
        int error = taio_statx(fd, e->name, 0, &unused, NULL);
        list->target[at] = error == 0 ? IFTODT(unused.mode) : error == -ENOENT ? 0 : (uint8_t)(128 - (error > -128 ? error : -EIO));
    }
}

int64_t taio_name_list(struct taio_name *n)
{
    _Alignas(8) char raw[TAIO_LIST_BYTES];
    struct taio_list *list = (struct taio_list *)(uintptr_t)n->memory;
    const char *path = n->path ? (const char *)(uintptr_t)n->path : ".";
    int64_t entries = 0;
    size_t used = 0;
    long size = 1;
    int flags = O_RDONLY | O_DIRECTORY | (n->flags & O_NOFOLLOW);
    if (n->fd < 0) {
        int fd = n->beneath ? taio_open_beneath(n->dir, path, flags, 0) : taio_open_long(n->dir, path, flags, n->no_links);
        if (fd < 0)
            return fd;
        n->fd = fd;
    }
    while (sizeof raw - used >= 512) { /* room for the longest entry, or the kernel answers EINVAL */
        size = syscall(SYS_getdents64, n->fd, raw + used, sizeof raw - used);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < 0 && errno == EINVAL && used > 0) { /* FUSE has names of more than 255 bytes: the next request has room for it */
            size = 1;
            break;
        }
        if (size <= 0)
            break;
        used += (size_t)size;
    }
    int error = size < 0 ? -errno : 0;
    list->used = 0;
    for (size_t at = 0; at < used;) {
        const struct entry *e = (const struct entry *)(raw + at);
        at += e->length;
        if (strcmp(e->name, ".") != 0 && strcmp(e->name, "..") != 0)
            add_entry(list, entries++, n->fd, e);
    }
    if (size <= 0) {
        close(n->fd);
        n->fd = -1;
    }
    return error < 0 ? error : entries;
}

/* ---- directories and their parents ---- */

static int is_directory(int dir, const char *path)
{
    struct stat st;
    return fstatat(dir, path, &st, 0) == 0 && S_ISDIR(st.st_mode);
}

/* Return the length of the parent's path, without slashes at its end; 0 if the path has none. */
static size_t parent_length(const char *path, size_t length)
{
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length;
}

/* Make all missing directories of `path`, a copy that it may change, with the mode 0777. Returns 0, or -errno and the length of the path that
 * failed. `any`: what exists is good enough, as for os.makedirs, and whatever the error is, it is that of the first name that cannot be made. */
static int make_parents(int dir, char *path, size_t length, int any, size_t *failed)
{
    size_t made = length;
    for (;;) { /* upwards, to the first that exists or can be made */
        char kept = path[made];
        path[made] = 0;
        int rc = mkdirat(dir, path, 0777) < 0 ? -errno : 0;
        int there = rc == 0 || (rc == -EEXIST && (any || is_directory(dir, path)));
        path[made] = kept;
        if (there)
            break;
        size_t up = parent_length(path, made);
        if ((rc != -ENOENT && !any) || up == 0 || up == made) {
            *failed = made;
            return rc;
        }
        made = up;
    }
    while (made < length) { /* and down again */
        size_t next = made;
        while (path[next] == '/')
            next++;
        next += strcspn(path + next, "/");
        if (next > length)
            next = length;
        char kept = path[next];
        path[next] = 0;
        int rc = mkdirat(dir, path, 0777) < 0 ? -errno : 0;
        int there = rc == 0 || (rc == -EEXIST && (any || is_directory(dir, path)));
        path[next] = kept;
        if (!there) {
            *failed = next;
            return rc;
        }
        made = next;
    }
    return 0;
}

/* Make the parents of `path`. Returns 0 or -errno; `failed` is set as in struct taio_name. */
static int make_parents_of(int dir, const char *path, int any, uint32_t *failed)
{
    size_t length = parent_length(path, strlen(path)), bad = 0;
    if (length == 0)
        return 0;
    char *copy = strdup(path);
    if (copy == NULL)
        return -ENOMEM;
    int rc = make_parents(dir, copy, length, any, &bad);
    free(copy);
    *failed = (uint32_t)bad;
    return rc;
}

/* Return whether the last component is a dot: then making the parents has made it all. */
static int ends_in_dot(const char *path)
{
    size_t length = strlen(path);
    return length > 1 && path[length - 1] == '.' && path[length - 2] == '/';
}

int64_t taio_name_mkdir(struct taio_name *n, int dir, const char *path)
{
    int rc = mkdirat(dir, path, n->mode) < 0 ? -errno : 0;
    int missing = rc == -ENOENT, looks_up = missing || (rc < 0 && rc != -EEXIST && (n->flags & TAIO_UPWARDS));
    if (looks_up && (n->flags & TAIO_PARENTS)) {
        int made = make_parents_of(dir, path, (n->flags & TAIO_UPWARDS) != 0, &n->failed);
        if (made < 0)
            return made;
        if (missing && ends_in_dot(path))
            return 0;
        rc = mkdirat(dir, path, n->mode) < 0 ? -errno : 0;
    }
    if (rc < 0 && rc != -ENOENT && (n->flags & TAIO_EXIST_OK) && is_directory(dir, path))
        return 0;
    return rc;
}

int64_t taio_name_removedirs(int dir, const char *path)
{
    if (unlinkat(dir, path, AT_REMOVEDIR) < 0)
        return -errno;
    char *copy = strdup(path);
    if (copy == NULL)
        return 0; /* removing the parents is only tried */
    for (size_t length = strlen(copy), up; (up = parent_length(copy, length)) > 0 && up != length; length = up) {
        copy[up] = 0;
        if (unlinkat(dir, copy, AT_REMOVEDIR) < 0)
            break;
    }
    free(copy);
    return 0;
}

int64_t taio_name_renames(struct taio_name *n)
{
    const char *path = (const char *)(uintptr_t)n->path, *path2 = (const char *)(uintptr_t)n->path2;
    int rc = make_parents_of(n->dir2, path2, 1, &n->failed);
    if (rc < 0)
        return rc;
    size_t head = parent_length(path2, strlen(path2));
    char *parent = head > 0 ? strndup(path2, head) : NULL;
    struct stat st;
    if (parent != NULL && fstatat(n->dir2, parent, &st, 0) < 0) { /* a link that leads nowhere: no directory, and its name is taken */
        free(parent);
        n->failed = (uint32_t)head;
        return -EEXIST;
    }
    free(parent);
    if (renameat(n->dir, path, n->dir2, path2) < 0)
        return -errno;
    size_t up = parent_length(path, strlen(path));
    char *copy = up > 0 ? strndup(path, up) : NULL;
    if (copy != NULL)
        taio_name_removedirs(n->dir, copy); /* only tried */
    free(copy);
    return 0;
}

/* ---- resolved paths ---- */

/* A link that is being resolved. */
struct link {
    const char *path;
    const struct link *outer;
};

/* A path that grows and shrinks, always absolute. */
struct resolved {
    char *text;
    size_t length, room;
    int strict, links; /* `links`: how many were resolved */
};

enum { MOST_LINKS = 4096, DEEPEST = 512 };

static int append(struct resolved *r, const char *name, size_t length)
{
    if (r->length + length + 2 > r->room) {
        size_t room = 2 * (r->length + length + 2);
        char *text = realloc(r->text, room);
        if (text == NULL)
            return -ENOMEM;
        r->text = text;
        r->room = room;
    }
    if (r->length > 1)
        r->text[r->length++] = '/';
    memcpy(r->text + r->length, name, length);
    r->length += length;
    r->text[r->length] = 0;
    return 0;
}

static void shorten(struct resolved *r, size_t length)
{
    r->length = length;
    r->text[length] = 0;
}

/* Follow `rest` from what is resolved so far. Returns 0, or -errno with `strict`: then the path so far is the one that failed. */
static int resolve(struct resolved *r, const char *rest, const struct link *outer, int depth)
{
    char target[PATH_MAX];
    if (*rest == '/')
        shorten(r, 1);
    while (*rest) {
        size_t length = strcspn(rest, "/"), before = r->length;
        const char *name = rest;
        rest += length + (rest[length] == '/');
        if (length == 0 || (length == 1 && *name == '.'))
            continue;
        if (length == 2 && name[0] == '.' && name[1] == '.') {
            while (r->length > 1 && r->text[r->length - 1] != '/')
                r->length--;
            shorten(r, r->length > 1 ? r->length - 1 : 1);
            continue;
        }
        int rc = append(r, name, length);
        if (rc < 0)
            return rc;
        ssize_t n = readlink(r->text, target, sizeof target - 1);
        if (n < 0) {
            if (errno != EINVAL && r->strict) /* EINVAL: it is no link */
                return -errno;
            continue;
        }
        target[n] = 0;
        int loops = depth == DEEPEST || r->links++ == MOST_LINKS;
        for (const struct link *link = outer; link != NULL && !loops; link = link->outer)
            loops = strcmp(link->path, r->text) == 0;
        if (loops) {
            if (r->strict)
                return -ELOOP;
            continue;
        }
        struct link link = {strdup(r->text), outer};
        if (link.path == NULL)
            return -ENOMEM;
        shorten(r, before);
        rc = resolve(r, target, &link, depth + 1);
        free((char *)link.path);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int64_t taio_name_realpath(struct taio_name *n)
{
    const char *path = (const char *)(uintptr_t)n->path;
    struct resolved r = {malloc(PATH_MAX), 1, PATH_MAX, (n->flags & TAIO_STRICT) != 0, 0};
    if (r.text == NULL)
        return -ENOMEM;
    strcpy(r.text, "/");
    int64_t rc = 0;
    if (*path != '/') {
        char *start = getcwd(NULL, 0);
        if (start == NULL)
            rc = -errno;
        else
            rc = append(&r, start + 1, strlen(start + 1));
        free(start);
    }
    if (rc == 0)
        rc = resolve(&r, path, NULL, 0);
    if (r.length + 1 <= n->capacity)
        memcpy((void *)(uintptr_t)n->memory, r.text, r.length + 1);
    else if (rc == 0)
        rc = -ENAMETOOLONG;
    if (rc == 0)
        rc = (int64_t)r.length;
    free(r.text);
    return rc;
}
