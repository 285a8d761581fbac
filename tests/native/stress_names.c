/* Calls on names, for the stress test: what workers do with many paths, listings, trees and whole files, and what the loop does inline.
 *
 * The tree has FILES files that do not change, and a folder for each slot, which only that slot's call changes. So each result is known. */
#include "stress.h"

#include <dirent.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 300, MOST = 40, DATA = 64 << 10 };

enum kind { LIST, READ_MANY, UNLINK_MANY, WRITE, COPY, STAT, MAKE, REALPATH, OPEN, KINDS };

struct name_call {
    enum kind kind;
    unsigned slot;
    struct taio_name name;
    struct taio_many many;
    struct taio_list *list;
    struct taio_stat *stats;
    struct taio_copy copy;
    struct taio_description description;
    int64_t results[MOST];
    uint8_t removing[MOST];
    int numbers[MOST]; /* of the files; -1: one that is absent */
    char names[MOST * 32], path[PATH_MAX], path2[PATH_MAX];
    char *data;
    size_t length;
};

static char tree[PATH_MAX - 512];
static struct taio_local local;

/* Return the size of a file, which says its contents. */
static size_t size_of(int number)
{
    return (size_t)number * 37 % 5000;
}

static char byte_of(int number, size_t at)
{
    return (char)(number + (int)at * 3);
}

static void check_contents(const char *data, int number)
{
    for (size_t i = 0; i < size_of(number); i++)
        CHECK(data[i] == byte_of(number, i));
}

static void write_file(const char *path, int number)
{
    char data[5000];
    for (size_t i = 0; i < size_of(number); i++)
        data[i] = byte_of(number, i);
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, data, size_of(number)) == (ssize_t)size_of(number));
    close(fd);
}

static void check_file(const char *path, int number)
{
    char data[5001];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && read(fd, data, sizeof data) == (ssize_t)size_of(number));
    close(fd);
    check_contents(data, number);
}

/* Return the path of a slot's own file or folder. */
static char *own_path(char *out, unsigned slot, const char *name)
{
    snprintf(out, PATH_MAX, "%s/own/%u/%s", tree, slot, name);
    return out;
}

void names_make_tree(const char *folder)
{
    char path[PATH_MAX];
    snprintf(tree, sizeof tree, "%s/stress-%d-names", folder, (int)getpid());
    CHECK(mkdir(tree, 0700) == 0);
    snprintf(path, sizeof path, "%s/own", tree);
    CHECK(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/files", tree);
    CHECK(mkdir(path, 0700) == 0);
    for (int i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "%s/files/%d", tree, i);
        write_file(path, i);
    }
    snprintf(path, sizeof path, "%s/files/link", tree);
    CHECK(symlink("7", path) == 0);
    struct taio_name stat = {.call = TAIO_NAME_STAT, .dir = AT_FDCWD, .path = (uint64_t)(uintptr_t)tree, .probe = 1};
    CHECK(taio_name_run(&stat) == 0);
    local = (struct taio_local){.sample = 4, .first = 8};
    if (stat.key != 0 && !stat.slept) {
        local.keys[0] = stat.key;
        local.count = 1;
    }
}

void names_remove_tree(void)
{
    char command[PATH_MAX + 32];
    snprintf(command, sizeof command, "rm -r '%s'", tree);
    CHECK(system(command) == 0);
}

static void draw_names(struct name_call *c)
{
    c->many.count = 1 + draw(MOST);
    size_t at = 0;
    for (unsigned i = 0; i < c->many.count; i++) {
        c->numbers[i] = draw(8) ? (int)draw(FILES) : -1;
        at += (size_t)snprintf(c->names + at, sizeof c->names - at, "%d", c->numbers[i]) + 1;
    }
    c->many.names = (uint64_t)(uintptr_t)c->names;
    c->many.results = (uint64_t)(uintptr_t)c->results;
    c->name.memory = (uint64_t)(uintptr_t)&c->many;
}

struct name_call *names_begin(unsigned slot, uint64_t *address)
{
    struct name_call *c = calloc(1, sizeof *c);
    char path[PATH_MAX];
    CHECK(c != NULL);
    c->kind = (enum kind)draw(KINDS);
    c->slot = slot;
    c->name = (struct taio_name){.dir = AT_FDCWD, .dir2 = AT_FDCWD, .fd = -1, .mode = 0600, .path = (uint64_t)(uintptr_t)c->path};
    snprintf(c->path, sizeof c->path, "%s/files", tree);
    own_path(path, slot, "");
    CHECK(mkdir(path, 0700) == 0 || errno == EEXIST);
    c->length = 1 + draw(DATA);
    c->data = malloc(c->length);
    CHECK(c->data != NULL);
    switch (c->kind) {
    case LIST:
        c->name.call = TAIO_NAME_LIST;
        c->list = malloc(sizeof *c->list);
        c->stats = draw(2) ? malloc(TAIO_LIST_ENTRIES * sizeof *c->stats) : NULL;
        CHECK(c->list != NULL);
        c->list->targets = (int)draw(2);
        c->list->stats = (uint64_t)(uintptr_t)c->stats;
        c->name.no_links = (int)draw(2);
        c->name.memory = (uint64_t)(uintptr_t)c->list;
        break;
    case READ_MANY:
        c->name.call = TAIO_NAME_READ_MANY;
        c->name.dir = open(c->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        CHECK(c->name.dir >= 0);
        strcpy(c->path, ".");
        draw_names(c);
        c->many.data = (uint64_t)(uintptr_t)c->data;
        c->many.capacity = c->length;
        break;
    case UNLINK_MANY:
        c->name.call = TAIO_NAME_UNLINK_MANY;
        own_path(c->path, slot, "");
        c->name.dir = open(c->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        CHECK(c->name.dir >= 0);
        c->name.path = 0;
        draw_names(c);
        for (unsigned i = 0; i < c->many.count; i++) {
            char name[16];
            snprintf(name, sizeof name, "%d", c->numbers[i]);
            c->removing[i] = c->numbers[i] % 3 == 0;
            if (c->removing[i])
                CHECK(mkdir(own_path(path, slot, name), 0700) == 0 || errno == EEXIST);
            else if (c->numbers[i] >= 0)
                write_file(own_path(path, slot, name), 1);
        }
        c->many.removing = (uint64_t)(uintptr_t)c->removing;
        break;
    case WRITE:
        c->name.call = TAIO_NAME_WRITE;
        own_path(c->path, slot, "written");
        c->name.flags = draw(2) ? TAIO_ATOMIC : 0;
        c->numbers[0] = (int)draw(FILES);
        c->name.capacity = size_of(c->numbers[0]);
        free(c->data);
        c->data = malloc(c->name.capacity + 1);
        CHECK(c->data != NULL);
        for (size_t i = 0; i < c->name.capacity; i++)
            c->data[i] = byte_of(c->numbers[0], i);
        c->name.memory = (uint64_t)(uintptr_t)c->data;
        break;
    case COPY:
        c->name.call = TAIO_NAME_COPY;
        c->numbers[0] = (int)draw(FILES);
        snprintf(c->path, sizeof c->path, "%s/files/%d", tree, c->numbers[0]);
        c->name.path2 = (uint64_t)(uintptr_t)own_path(c->path2, slot, "copied");
        c->name.flags = draw(2) ? TAIO_PRESERVE : 0;
        c->copy.source = c->copy.target.parent = c->copy.target.fd = -1;
        c->name.memory = (uint64_t)(uintptr_t)&c->copy;
        break;
    case STAT:
        c->name.call = TAIO_NAME_STAT;
        c->numbers[0] = draw(4) ? (int)draw(FILES) : -1;
        c->name.probe = (int)draw(2);
        snprintf(c->path, sizeof c->path, "%s/files/%d", tree, c->numbers[0]);
        break;
    case MAKE:
        c->name.call = TAIO_NAME_MKDIR;
        c->name.flags = TAIO_PARENTS | TAIO_EXIST_OK;
        c->name.mode = 0700;
        own_path(c->path, slot, "a/b/../b//c");
        break;
    case REALPATH:
        c->name.call = TAIO_NAME_REALPATH;
        snprintf(c->path, sizeof c->path, "%s/./own/../files/link", tree);
        c->name.flags = TAIO_STRICT;
        c->name.memory = (uint64_t)(uintptr_t)c->data;
        c->name.capacity = c->length;
        break;
    default:
        c->name.call = TAIO_NAME_OPEN;
        c->numbers[0] = draw(4) ? (int)draw(FILES) : -1;
        snprintf(c->path, sizeof c->path, "%s/files/%d", tree, c->numbers[0]);
        c->name.memory = draw(2) ? (uint64_t)(uintptr_t)&c->description : 0;
    }
    *address = (uint64_t)(uintptr_t)&c->name;
    return c;
}

/* Check a listing, and read on to its end. */
static void check_list(struct name_call *c, int64_t count)
{
    unsigned seen = 0;
    for (;;) {
        const char *name = c->list->names;
        for (int64_t i = 0; i < count; i++, name += strlen(name) + 1) {
            int is_link = strcmp(name, "link") == 0;
            CHECK(c->list->types[i] == (is_link ? DT_LNK : DT_REG));
            CHECK(c->list->target[i] == (is_link && c->list->targets ? DT_REG : 0));
            if (c->stats != NULL)
                CHECK(c->stats[i].inode == c->list->inodes[i] && (is_link || c->stats[i].size == (int64_t)size_of(atoi(name))));
            seen++;
        }
        CHECK((uint64_t)(name - c->list->names) == c->list->used);
        if (c->name.fd < 0)
            break;
        count = taio_name_run(&c->name);
        CHECK(count >= 0);
    }
    CHECK(seen == FILES + 1);
}

void names_end(struct name_call *c, int64_t result, int ran)
{
    char path[PATH_MAX];
    const char *data = c->data;
    int absent = c->numbers[0] < 0;
    if (ran)
        switch (c->kind) {
        case LIST:
            CHECK(result >= 0);
            check_list(c, result);
            break;
        case READ_MANY:
            CHECK(result >= 0 && c->many.done > 0);
            for (unsigned i = 0; i < c->many.done; i++) {
                int64_t size = c->results[i];
                if (c->numbers[i] < 0)
                    CHECK(size == -ENOENT);
                else if (data == c->data && size_of(c->numbers[i]) >= c->length) /* nothing was read before it */
                    CHECK(size == -EFBIG);
                else {
                    CHECK(size == (int64_t)size_of(c->numbers[i]));
                    check_contents(data, c->numbers[i]);
                    data += size;
                }
            }
            CHECK(data - c->data == result);
            break;
        case UNLINK_MANY:
            CHECK(result == 0 && c->many.done == c->many.count);
            for (unsigned i = 0; i < c->many.count; i++) {
                int again = c->numbers[i] < 0;
                for (unsigned k = 0; k < i; k++)
                    again |= c->numbers[k] == c->numbers[i];
                CHECK(c->results[i] == (again ? -ENOENT : 0));
            }
            break;
        case WRITE:
            CHECK(result == (int64_t)c->name.capacity);
            check_file(c->path, c->numbers[0]);
            break;
        case COPY:
            CHECK(result == 0 && (uint64_t)c->copy.offset == size_of(c->numbers[0]) && c->copy.source < 0 && c->copy.target.parent < 0);
            check_file(c->path2, c->numbers[0]);
            break;
        case STAT:
            CHECK(result == (absent ? -ENOENT : 0));
            CHECK(absent || c->name.stat.size == (int64_t)size_of(c->numbers[0]));
            break;
        case MAKE:
            CHECK(result == 0 && rmdir(own_path(path, c->slot, "a/b/c")) == 0);
            break;
        case REALPATH:
            snprintf(path, sizeof path, "/files/7");
            CHECK(result == -ENAMETOOLONG || memcmp(data + result - strlen(path), path, strlen(path)) == 0);
            break;
        default:
            CHECK(result == (absent ? -ENOENT : 0) && (absent || c->name.fd >= 0));
            CHECK(absent || c->name.memory == 0 || c->description.size == size_of(c->numbers[0]));
            if (!absent)
                close(c->name.fd);
        }
    if (c->name.dir >= 0)
        close(c->name.dir);
    free(c->list);
    free(c->stats);
    free(c->data);
    free(c);
}

void names_inline(void)
{
    struct taio_status status;
    struct taio_description description;
    char path[PATH_MAX], data[5001];
    int number = draw(8) ? (int)draw(FILES) : -1;
    uint64_t size = draw(sizeof data);
    int64_t offset = (int64_t)draw(5000), rc;
    snprintf(path, sizeof path, "%s/files/%d", tree, number);
    rc = taio_inline_stat(&local, AT_FDCWD, path, 0, 0, draw(2) ? &status : NULL);
    CHECK(rc == 0 ? number >= 0 : rc == -ENOENT ? number < 0 : rc < 0);
    rc = taio_inline_read_file(&local, AT_FDCWD, path, 0, data, size, offset, 0);
    if (rc >= 0) {
        int64_t left = (int64_t)size_of(number) - offset;
        CHECK(rc == (left < 0 ? 0 : left < (int64_t)size ? left : (int64_t)size));
        for (int64_t i = 0; i < rc; i++)
            CHECK(data[i] == byte_of(number, (size_t)(offset + i)));
    }
    rc = taio_inline_open(&local, AT_FDCWD, path, O_RDONLY, 0, &description);
    if (rc >= 0) {
        CHECK(description.size == size_of(number));
        if (taio_inline_close((int)rc) != 0)
            close((int)rc);
    }
    snprintf(path, sizeof path, "%s/files/link", tree);
    rc = taio_inline_readlink(&local, AT_FDCWD, path, 0, data, sizeof data);
    CHECK(rc < 0 || (rc == 1 && data[0] == '7'));
}
