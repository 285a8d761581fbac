/* Blocking reads and writes. Workers call them, each with a transfer and scratch memory of its own, so nothing here needs a lock.
 *
 * preadv2 and pwritev2 may move fewer bytes than were requested, and a signal may interrupt them. A transfer calls them again until all bytes
 * are moved, the file ends or there is an error. O_DIRECT accepts only aligned memory, offsets and lengths; other transfers go through
 * aligned scratch memory. */
#include "native.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define SCRATCH (1u << 20) /* bytes */
#define SMALLEST_BLOCK 512 /* bytes; no device has smaller blocks */
#define LARGEST_BLOCK 4096 /* bytes; of files that do not report theirs */

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

/* Copy `count` bytes between the start of the rest and `memory`. `mapped`: let the kernel copy. Returns 0 or -errno. */
static int rest_copy(struct rest rest, char *memory, uint64_t count, int to_memory, int mapped)
{
    for (struct iovec *part = rest.vector; count > 0; part++) {
        uint64_t n = part->iov_len < count ? part->iov_len : count;
        void *to = to_memory ? memory : part->iov_base;
        const void *from = to_memory ? part->iov_base : memory;
        if (mapped) {
            int error = taio_copy(to, from, n, !to_memory);
            if (error != 0)
                return error;
        } else
            memcpy(to, from, n);
        memory += n;
        count -= n;
    }
    return 0;
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

/* The kernel context of the calling worker, made by its first write that needs io_submit (transfer_without_append); 0: none yet.
 * Initial-exec: the variable comes with the thread's stack, so no thread asks malloc for it. */
static _Thread_local uint64_t worker_context __attribute__((tls_model("initial-exec")));

void taio_transfer_end_worker(void)
{
    if (worker_context != 0)
        taio_io_destroy(worker_context);
    worker_context = 0;
}

/* Write at `offset` of a file that is open with O_APPEND, by io_submit: overlayfs forgets RWF_NOAPPEND in pwritev2, and appends. Waits until it
 * is done. Returns the bytes written, or -errno; -EOPNOTSUPP where there is no native AIO. */
static ssize_t transfer_without_append(int fd, const struct taio_transfer *t, const struct iovec *vector, int parts, int64_t offset)
{
    struct iocb iocb = {.aio_lio_opcode = IOCB_CMD_PWRITEV, .aio_fildes = (uint32_t)fd, .aio_buf = (uint64_t)(uintptr_t)vector};
    struct iocb *one = &iocb;
    struct io_event event;
    long n;
    iocb.aio_nbytes = (uint64_t)parts;
    iocb.aio_offset = offset;
    iocb.aio_rw_flags = t->flags;
    if (worker_context == 0 && taio_io_setup(1, &worker_context) < 0)
        return -EOPNOTSUPP;
    do
        n = taio_io_submit(worker_context, 1, &one);
    while (n == -EINTR);
    if (n != 1)
        return n < 0 ? n : -EAGAIN;
    do
        n = taio_io_getevents(worker_context, 1, 1, &event, NULL);
    while (n == -EINTR || n == 0);
    return n < 0 ? n : event.res;
}

/* Make one call, again after EINTR. Returns the bytes moved, or -errno. */
static ssize_t transfer_once(int fd, const struct taio_transfer *t, const struct iovec *vector, int parts, int64_t offset)
{
    ssize_t n;
    if (t->writing && (t->flags & RWF_NOAPPEND) != 0 && (fcntl(fd, F_GETFL) & O_APPEND) != 0)
        return transfer_without_append(fd, t, vector, parts, offset);
    do
        n = t->writing ? pwritev2(fd, vector, parts, offset, t->flags) : preadv2(fd, vector, parts, offset, t->flags);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int taio_crosses_size_limit(int64_t offset, uint64_t length)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY || offset < 0)
        return 0;
    return (uint64_t)offset < limit.rlim_cur && (uint64_t)offset + length > limit.rlim_cur;
}

/* Make a write again that failed with EINVAL, if it crosses RLIMIT_FSIZE. The kernel cuts such a write at the limit, and O_DIRECT refuses the
 * rest of a block that this leaves. So write the whole blocks below the limit, and fail with EFBIG where there is none. */
static ssize_t transfer_below_limit(const struct taio_transfer *t, struct iovec *vector, int parts, int64_t offset)
{
    struct taio_description description;
    struct rlimit limit;
    uint64_t total = 0;
    for (int i = 0; i < parts; i++)
        total += vector[i].iov_len;
    if (!taio_crosses_size_limit(offset, total) || taio_describe(t->fd, &description) < 0 || !(description.open_flags & O_DIRECT))
        return -EINVAL;
    uint64_t unit = description.dio_offset > 0 ? description.dio_offset : LARGEST_BLOCK;
    uint64_t room = getrlimit(RLIMIT_FSIZE, &limit) < 0 ? 0 : (limit.rlim_cur - (uint64_t)offset) / unit * unit;
    if (room == 0 || room >= total || (t->flags & RWF_ATOMIC) != 0)
        return -EFBIG;
    int last = 0;
    while (room > vector[last].iov_len)
        room -= vector[last++].iov_len;
    size_t whole = vector[last].iov_len;
    vector[last].iov_len = room;
    ssize_t n = transfer_once(t->fd, t, vector, last + 1, offset);
    vector[last].iov_len = whole;
    return n;
}

/* Make one call. If a direct read fails with EIO, read once more through the page cache.
 * XFS returns EIO for a direct read that meets blocks which a buffered write has reserved but not yet allocated (iomap_dio_iter,
 * IOMAP_DELALLOC). This happens next to such a write and, while the file is open, if such blocks lie behind its end. The page cache has the
 * right data. If it was the device that failed, the second read fails too. */
static ssize_t transfer_or_retry(const struct taio_transfer *t, struct iovec *vector, int parts, int64_t offset)
{
    ssize_t n = transfer_once(t->fd, t, vector, parts, offset);
    if (n == -EINVAL && t->writing)
        return transfer_below_limit(t, vector, parts, offset);
    if (n != -EIO || t->writing || (t->flags & RWF_NOWAIT) != 0 || !(fcntl(t->fd, F_GETFL) & O_DIRECT))
        return n;
    int buffered_fd = taio_buffered_fd_open(t->fd);
    if (buffered_fd < 0)
        return n;
    n = transfer_once(buffered_fd, t, vector, parts, offset);
    close(buffered_fd);
    return n;
}

/* Read what there is of the last block below the largest offset, through the page cache: O_DIRECT would need all of it. */
static ssize_t transfer_last_block(const struct taio_transfer *t, struct iovec *one, int64_t offset)
{
    int buffered_fd = taio_buffered_fd_open(t->fd);
    if (buffered_fd < 0)
        return buffered_fd;
    one->iov_len = (size_t)(INT64_MAX - offset);
    ssize_t n = transfer_once(buffered_fd, t, one, 1, offset);
    close(buffered_fd);
    return n;
}

int64_t taio_transfer(struct taio_transfer *t)
{
    struct rest rest = {t->vector, t->parts};
    rest_advance(&rest, 0);
    if ((t->flags & RWF_ATOMIC) != 0 && rest.parts > IOV_MAX)
        return -EINVAL; /* it would be several writes */
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

/* Make one write of all bytes, `size` of them, from memory that has room for them: an atomic write of several parts would not be one. */
static int64_t transfer_at_once(struct taio_transfer *t, uint64_t size)
{
    struct rest rest = {t->vector, t->parts};
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    struct iovec one = {memory, size};
    ssize_t n = rest_copy(rest, memory, size, 1, t->mapped);
    if (n == 0)
        n = transfer_once(t->fd, t, &one, 1, t->offset);
    munmap(memory, size);
    t->transferred = n > 0 ? n : 0;
    return n;
}

/* A write's offset and length must already be multiples of `unit`: O_DIRECT cannot write part of a block. A read may start and end anywhere. */
int64_t taio_transfer_through_scratch(struct taio_transfer *t, uint64_t unit, struct taio_scratch *scratch)
{
    struct rest rest = {t->vector, t->parts};
    uint64_t left = 0;
    char *memory = scratch_memory(scratch);
    if (memory == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < t->parts; i++)
        left += t->vector[i].iov_len;
    if (left > (uint64_t)(INT64_MAX - t->offset))
        return -EINVAL; /* as the kernel says of what reaches beyond the largest offset */
    if ((t->flags & RWF_ATOMIC) != 0 && left > SCRATCH)
        return transfer_at_once(t, left);
    while (left > 0) {
        uint64_t before = 0, length = left;
        if (!t->writing) { /* a write that stopped within a block continues there: the kernel says why it did */
            before = (uint64_t)(t->offset + t->transferred) % unit;
            length = (before + left + unit - 1) / unit * unit;
        }
        if (length > SCRATCH)
            length = SCRATCH / unit * unit;
        int error = t->writing ? rest_copy(rest, memory, length, 1, t->mapped) : 0;
        if (error != 0)
            return error;
        struct iovec one = {memory, length};
        int64_t offset = t->offset + t->transferred - (int64_t)before;
        ssize_t n = length > (uint64_t)(INT64_MAX - offset) ? transfer_last_block(t, &one, offset) : transfer_or_retry(t, &one, 1, offset);
        if (n < 0)
            return n;
        if ((uint64_t)n <= before)
            return t->writing ? -EIO : t->transferred;
        uint64_t useful = (uint64_t)n - before < left ? (uint64_t)n - before : left;
        if (!t->writing)
            error = rest_copy(rest, memory + before, useful, 0, t->mapped);
        if (error != 0)
            return error;
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
        struct taio_transfer t = {pieces->fd, pieces->flags, pieces->writing, &one, 1, piece->offset, 0, pieces->mapped};
        int misaligned = ((uint64_t)piece->offset | piece->length) % pieces->unit != 0 || piece->memory % pieces->memory_unit != 0;
        int64_t before = piece->result; /* if another lane moved a part of the piece, it was the first part */
        piece->result = misaligned ? taio_transfer_through_scratch(&t, pieces->unit, scratch) : taio_transfer(&t);
        transferred += t.transferred;
        if (piece->result < 0)
            taio_pieces_fail(pieces, piece, before > t.transferred ? before : t.transferred);
    }
    return transferred;
}
