/* Calls that use the kernel's file position: that of an fd which others may use too. Workers make them, each on a struct of its own.
 *
 * read(2) and write(2) move the position and the bytes in one step, under a lock of the open file. So a process that shares it is never
 * overwritten, even if it writes at the same moment. lseek(2) waits for that lock, so the event loop's thread must not call it.
 *
 * O_DIRECT needs aligned offsets, and a read that may be abandoned must not move the position any more once it was. Both use the position as
 * it is, move the bytes at that offset, and set the position behind them. */
#include "native.h"

#include <string.h>
#include <unistd.h>

/* Move the position back to `wanted`, if it is still where an earlier call left it, and store where the call starts. */
static int64_t cursor_start(struct taio_cursor *cursor, int fd)
{
    if (cursor->start >= 0)
        return 0; /* the call continues behind its first part */
    int64_t position = lseek(fd, 0, SEEK_CUR);
    if (position >= 0 && cursor->wanted != position && (cursor->left == position || cursor->left == TAIO_ANYWHERE))
        position = lseek(fd, cursor->wanted, SEEK_SET);
    if (position < 0)
        return -errno;
    cursor->start = cursor->position = position;
    return 0;
}

/* Set the position. It was read with lseek before, so this cannot fail unless the new one is beyond what the filesystem allows. */
static void cursor_set(struct taio_cursor *cursor, int fd, int64_t position)
{
    if (lseek(fd, position, SEEK_SET) >= 0)
        cursor->position = position;
}

/* Read from the position on, by read(2). Returns the bytes read, or -errno. */
static int64_t cursor_read_on(struct taio_cursor *cursor, int fd, char *memory, uint64_t length)
{
    uint64_t moved = 0;
    while (moved < length) {
        ssize_t n = read(fd, memory + moved, length - moved);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int error = errno;
            if (moved > 0)
                lseek(fd, -(int64_t)moved, SEEK_CUR);
            return -error;
        }
        moved += (uint64_t)n;
        cursor->position += n;
        if (n == 0 || cursor->line)
            break;
    }
    return (int64_t)moved;
}

/* Read at the position, by pread(2). Returns the bytes read, or -errno. */
static int64_t cursor_read_at(struct taio_cursor *cursor, int fd, char *memory, uint64_t length, struct taio_scratch *scratch)
{
    struct iovec one = {memory, length};
    struct taio_transfer t = {.fd = fd, .vector = &one, .parts = 1, .offset = cursor->position, .mapped = cursor->mapped};
    return cursor->unit > 1 ? taio_transfer_through_scratch(&t, cursor->unit, scratch) : taio_transfer(&t);
}

int64_t taio_cursor_read(struct taio_cursor *cursor, int fd, char *memory, uint64_t length, struct taio_scratch *scratch)
{
    int64_t error = cursor_start(cursor, fd);
    if (error < 0)
        return error;
    int64_t before = cursor->position;
    int64_t n = cursor->at_offset ? cursor_read_at(cursor, fd, memory, length, scratch) : cursor_read_on(cursor, fd, memory, length);
    if (n < 0) {
        cursor->position = before;
        return n;
    }
    int64_t useful = n;
    if (cursor->line) {
        char *end = memchr(memory, '\n', (size_t)n);
        useful = end == NULL ? n : end - memory + 1;
    }
    if (cursor->at_offset) {
        int32_t state = TAIO_PENDING;
        if (__atomic_compare_exchange_n(&cursor->state, &state, TAIO_COMMITTED, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            cursor_set(cursor, fd, before + useful);
    } else if (useful < n && lseek(fd, useful - n, SEEK_CUR) >= 0) {
        cursor->position -= n - useful;
    }
    return useful;
}

int taio_cursor_abandon(struct taio_cursor *cursor)
{
    int32_t state = TAIO_PENDING;
    return __atomic_compare_exchange_n(&cursor->state, &state, TAIO_ABANDONED, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Write by write(2). `fd`: that of the file, or its second fd, which has a position of its own. Returns the bytes written, or -errno after `*moved` bytes. */
static int64_t cursor_write_on(int fd, const char *memory, uint64_t length, int64_t *moved)
{
    while ((uint64_t)*moved < length) {
        ssize_t n = write(fd, memory + *moved, length - (uint64_t)*moved);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        *moved += n;
    }
    return *moved;
}

/* Write to an fd with O_DIRECT, or part of a block to its second fd, and set the position behind it. */
static int64_t cursor_write_direct(struct taio_cursor *cursor, int fd, char *memory, uint64_t length, int64_t *moved,
                                   struct taio_scratch *scratch)
{
    int64_t offset = cursor->position, n;
    if (cursor->append) {
        n = cursor_write_on(cursor->buffered_fd, memory, length, moved);
        int64_t end = lseek(cursor->buffered_fd, 0, SEEK_CUR);
        if (*moved > 0 && end >= 0)
            cursor_set(cursor, fd, end);
        return n;
    }
    int is_whole = ((uint64_t)offset | length) % cursor->unit == 0;
    struct iovec one = {memory, length};
    struct taio_transfer t = {
        .fd = is_whole ? fd : cursor->buffered_fd, .writing = 1, .vector = &one, .parts = 1, .offset = offset, .mapped = cursor->mapped};
    n = is_whole && cursor->unit > 1 ? taio_transfer_through_scratch(&t, cursor->unit, scratch) : taio_transfer(&t);
    *moved = t.transferred;
    if (*moved > 0)
        cursor_set(cursor, fd, offset + *moved);
    return n;
}

int64_t taio_cursor_write(struct taio_cursor *cursor, int fd, char *memory, uint64_t length, int64_t *moved, struct taio_scratch *scratch)
{
    int64_t n = cursor_start(cursor, fd);
    if (n < 0)
        return n;
    if (cursor->buffered_fd >= 0)
        return cursor_write_direct(cursor, fd, memory, length, moved, scratch);
    n = cursor_write_on(fd, memory, length, moved);
    if (*moved > 0) {
        int64_t position = lseek(fd, 0, SEEK_CUR); /* with O_APPEND only the kernel knows it */
        if (position >= 0)
            cursor->position = position;
    }
    return n;
}

int64_t taio_cursor_seek(struct taio_cursor *cursor, int fd, int64_t offset, int whence)
{
    int64_t error = cursor_start(cursor, fd);
    if (error < 0)
        return error;
    if (whence == SEEK_CUR && offset == 0)
        return cursor->position;
    int64_t position = lseek(fd, offset, whence);
    if (position < 0)
        return -errno;
    cursor->position = position;
    return position;
}
