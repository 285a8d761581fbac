/* Blocking reads and writes. Workers call them, each with a transfer and scratch memory of its own, so nothing here needs a lock.
 *
 * preadv2 and pwritev2 may move fewer bytes than were requested, and a signal may interrupt them. A transfer calls them again until all bytes
 * are moved, the file ends or there is an error. O_DIRECT accepts only aligned memory, offsets and lengths; other transfers go through
 * aligned scratch memory. */
#include "native.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SCRATCH (1u << 20) /* bytes */
#define SMALLEST_BLOCK 512 /* bytes; no device has smaller blocks */

/* The part of a vector that was not moved yet. Owned by the transfer, on its worker's stack. */
struct rest {
    struct iovec *vector;
    uint64_t parts;
};

/* Skip `count` bytes, and parts that are empty. */
static void rest_advance(struct rest *rest, uint64_t count)
{
    while (rest->parts > 0 && count >= rest->vector->iov_len) {
        count -= rest->vector->iov_len;
        rest->vector++;
        rest->parts--;
    }
    if (count > 0) {
        rest->vector->iov_base = (char *)rest->vector->iov_base + count;
        rest->vector->iov_len -= count;
    }
}

/* Copy `count` bytes between the start of the rest and `memory`. */
static void rest_copy(struct rest rest, char *memory, uint64_t count, int to_memory)
{
    for (struct iovec *part = rest.vector; count > 0; part++) {
        uint64_t n = part->iov_len < count ? part->iov_len : count;
        if (to_memory)
            memcpy(memory, part->iov_base, n);
        else
            memcpy(part->iov_base, memory, n);
        memory += n;
        count -= n;
    }
}

int taio_buffered_fd_open(int fd)
{
    char path[sizeof "/proc/self/fd/" + 3 * sizeof fd];
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int buffered_fd = open(path, (flags & (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC)) | O_CLOEXEC);
    return buffered_fd < 0 ? -errno : buffered_fd;
}

/* Make one call, again after EINTR. Returns the bytes moved, or -errno. */
static ssize_t transfer_once(int fd, const struct taio_transfer *t, const struct iovec *vector, int parts, int64_t offset)
{
    ssize_t n;
    do
        n = t->writing ? pwritev2(fd, vector, parts, offset, t->flags) : preadv2(fd, vector, parts, offset, t->flags);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* Make one call. If a direct read fails with EIO, read once more through the page cache.
 * XFS returns EIO for a direct read that meets blocks which a buffered write has reserved but not yet allocated (iomap_dio_iter,
 * IOMAP_DELALLOC). This happens next to such a write and, while the file is open, if such blocks lie behind its end. The page cache has the
 * right data. If it was the device that failed, the second read fails too. */
static ssize_t transfer_or_retry(const struct taio_transfer *t, const struct iovec *vector, int parts, int64_t offset)
{
    ssize_t n = transfer_once(t->fd, t, vector, parts, offset);
    if (n != -EIO || t->writing || (t->flags & RWF_NOWAIT) != 0 || !(fcntl(t->fd, F_GETFL) & O_DIRECT))
        return n;
    int buffered_fd = taio_buffered_fd_open(t->fd);
    if (buffered_fd < 0)
        return n;
    n = transfer_once(buffered_fd, t, vector, parts, offset);
    close(buffered_fd);
    return n;
}

int64_t taio_transfer(struct taio_transfer *t)
{
    struct rest rest = {t->vector, t->parts};
    rest_advance(&rest, 0);
    while (rest.parts > 0) { /* one call takes at most IOV_MAX parts */
        ssize_t n = transfer_or_retry(t, rest.vector, rest.parts < IOV_MAX ? (int)rest.parts : IOV_MAX, t->offset + t->transferred);
        if (n == -EINVAL && !t->writing && t->transferred > 0 && (t->offset + t->transferred) % SMALLEST_BLOCK != 0)
            return t->transferred; /* O_DIRECT: the last call stopped at the end of the file, which has grown since */
        if (n < 0)
            return n;
        if (n == 0)
            return t->writing ? -EIO : t->transferred;
        t->transferred += n;
        rest_advance(&rest, (uint64_t)n);
    }
    return t->transferred;
}

/* Return the scratch memory, SCRATCH bytes on a page boundary; NULL: no memory. */
static char *scratch_memory(struct taio_scratch *scratch)
{
    if (scratch->memory == NULL) {
        void *memory = mmap(NULL, SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
        madvise(memory, SCRATCH, MADV_DONTFORK); /* a device may write to it: a fork must not copy it */
        scratch->memory = memory;
    }
    return scratch->memory;
}

void taio_scratch_free(struct taio_scratch *scratch)
{
    if (scratch->memory != NULL)
        munmap(scratch->memory, SCRATCH);
}

/* A write's offset and length must already be multiples of `unit`: O_DIRECT cannot write part of a block. A read may start and end anywhere. */
int64_t taio_transfer_bounced(struct taio_transfer *t, uint64_t unit, struct taio_scratch *scratch)
{
    struct rest rest = {t->vector, t->parts};
    uint64_t left = 0;
    char *memory = scratch_memory(scratch);
    if (memory == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < t->parts; i++)
        left += t->vector[i].iov_len;
    while (left > 0) {
        uint64_t before = (uint64_t)(t->offset + t->transferred) % unit;
        uint64_t length = (before + left + unit - 1) / unit * unit;
        if (length > SCRATCH)
            length = SCRATCH / unit * unit;
        if (t->writing)
            rest_copy(rest, memory, length, 1);
        struct iovec one = {memory, length};
        ssize_t n = transfer_or_retry(t, &one, 1, t->offset + t->transferred - (int64_t)before);
        if (n < 0)
            return n;
        if ((uint64_t)n <= before)
            return t->writing ? -EIO : t->transferred;
        uint64_t useful = (uint64_t)n - before < left ? (uint64_t)n - before : left;
        if (!t->writing)
            rest_copy(rest, memory + before, useful, 0);
        rest_advance(&rest, useful);
        t->transferred += (int64_t)useful;
        left -= useful;
    }
    return t->transferred;
}

int64_t taio_pieces_transfer(struct taio_pieces *pieces, struct taio_scratch *scratch)
{
    int64_t transferred = 0;
    for (; pieces->next < pieces->count && !__atomic_load_n(&pieces->stop, __ATOMIC_RELAXED); pieces->next++) {
        struct taio_piece *piece = &pieces->pieces[pieces->next];
        if (!taio_pieces_can_retry(pieces, piece))
            continue;
        struct iovec one = {(void *)(uintptr_t)piece->memory, piece->length};
        struct taio_transfer t = {pieces->fd, pieces->flags, pieces->writing, &one, 1, piece->offset, 0};
        int misaligned = ((uint64_t)piece->offset | piece->length) % pieces->unit != 0 || piece->memory % pieces->memory_unit != 0;
        int64_t before = piece->result; /* if another lane moved a part of the piece, it was the first part */
        piece->result = misaligned ? taio_transfer_bounced(&t, pieces->unit, scratch) : taio_transfer(&t);
        transferred += t.transferred;
        if (piece->result < 0)
            taio_pieces_fail(pieces, piece, before > t.transferred ? before : t.transferred);
    }
    return transferred;
}
