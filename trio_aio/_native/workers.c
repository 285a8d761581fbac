/* The workers: threads that make the calls that may sleep.
 *
 * A worker is a Python thread inside taio_pool_work. It does not hold the GIL and touches no Python object. The loop fills a slot and appends
 * its index to a queue. A worker takes the index, makes the call and pushes the slot on a stack of finished ones. The loop takes the whole
 * stack at once.
 *
 * There is no lock: the loop would have to wait for a worker that was preempted while it held one. The queue has one producer, the loop, and
 * its consumers move `head` by compare-and-swap. The stack has many producers and one consumer, which swaps the whole stack for an empty one
 * (so there is no ABA problem).
 *
 * The loop owns a slot until it hands it over. The worker that moves its state from READY to TAKEN owns it until it is on the stack. Then the
 * loop owns it again. If the loop moves the state to WITHDRAWN first, the worker that takes the index only pushes the slot on the stack.
 *
 * What the atomics order:
 * - `tail` (store, load): the loop filled the slot, its chain and the queue's entry before a worker reads them;
 * - `state` (compare-and-swap): either a worker or the loop gets a slot that is READY, never both;
 * - `finished` (release, acquire): the worker stored the result before the loop reads it;
 * - `tail` and `sleepers` (sequentially consistent): the loop stores `tail` and then loads `sleepers`, a worker raises `sleepers` and then
 *   loads `tail`. So either the loop sees the worker asleep and wakes it, or the worker sees the request. */
#include "native.h"

#include <pthread.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define NONE TAIO_NONE

enum slot_state { IDLE, READY, TAKEN, WITHDRAWN };

/* One request. The loop or one worker owns it: see above. */
struct slot {
    _Atomic int state;
    uint32_t next;   /* on the stack of finished slots: the slot below, or NONE */
    uint32_t behind; /* in its chain: the slot behind, or NONE */
    int out;         /* 1 from the hand-over until its completion was returned. The loop's */
    uint64_t token;
    int operation, fd, flags;
    void *memory, *extra;
    uint64_t length;
    int64_t offset;
    int64_t result, transferred;
};

/* Shared by the loop and the workers. What is not atomic does not change after taio_pool_new. */
struct taio_pool {
    int event_fd;
    uint32_t slots, mask;
    _Atomic uint32_t finished;    /* top of the stack, or NONE */
    _Atomic uint64_t head, tail;  /* of the queue: workers move `head`, the loop moves `tail` */
    _Atomic uint32_t sleepers;    /* workers that sleep, or will look once more before they do */
    _Atomic uint32_t waking;      /* 1: a worker was woken and has not looked yet, so the loop wakes no other */
    _Atomic uint32_t wakeups;     /* the futex: each wake-up changes it, so that none is lost between look and sleep */
    _Atomic int stopping;
    _Atomic uint32_t *queue;
    struct slot slot[];
};

struct taio_pool *taio_pool_new(unsigned slots, int event_fd)
{
    struct taio_pool *pool = calloc(1, sizeof *pool + slots * sizeof(struct slot));
    uint32_t capacity = 1;
    if (pool == NULL)
        return NULL;
    while (capacity < slots)
        capacity *= 2;
    pool->queue = calloc(capacity, sizeof *pool->queue);
    if (pool->queue == NULL) {
        free(pool);
        return NULL;
    }
    pool->event_fd = event_fd;
    pool->slots = slots;
    pool->mask = capacity - 1;
    atomic_init(&pool->finished, NONE);
    return pool;
}

void taio_pool_free(struct taio_pool *pool)
{
    free(pool->queue);
    free(pool);
}

/* Wake at most `how_many` threads that sleep on `word`. */
static void futex_wake(_Atomic uint32_t *word, int how_many)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, how_many, NULL, NULL, 0);
}

/* Wake one worker, unless one is waking already. It wakes the next if it finds more to do, so a burst costs the loop one system call. */
static void pool_wake_one(struct taio_pool *pool)
{
    if (atomic_load(&pool->sleepers) == 0 || atomic_exchange(&pool->waking, 1) != 0)
        return;
    atomic_fetch_add(&pool->wakeups, 1);
    futex_wake(&pool->wakeups, 1);
}

void taio_pool_prepare(struct taio_pool *pool, unsigned slot, unsigned before, uint64_t token, int operation, int fd, uint64_t memory,
                       uint64_t length, int64_t offset, int flags, uint64_t extra)
{
    struct slot *s = &pool->slot[slot];
    s->token = token;
    s->operation = operation;
    s->fd = fd;
    s->memory = (void *)(uintptr_t)memory;
    s->length = length;
    s->offset = offset;
    s->flags = flags;
    s->extra = (void *)(uintptr_t)extra;
    s->transferred = 0;
    s->behind = NONE;
    if (before != NONE)
        pool->slot[before].behind = slot; /* still owned by the loop: not handed over yet */
    atomic_store_explicit(&s->state, READY, memory_order_relaxed); /* the store of `tail` publishes it */
}

int taio_pool_hand_over(struct taio_pool *pool, unsigned slot)
{
    for (uint32_t each = slot; each != NONE; each = pool->slot[each].behind)
        pool->slot[each].out = 1;
    uint64_t tail = atomic_load_explicit(&pool->tail, memory_order_relaxed);
    atomic_store_explicit(&pool->queue[tail & pool->mask], slot, memory_order_relaxed);
    atomic_store(&pool->tail, tail + 1);
    pool_wake_one(pool);
    int64_t waiting = (int64_t)(tail + 1 - atomic_load(&pool->head));
    return (int)(waiting - (int64_t)atomic_load(&pool->sleepers));
}

int taio_pool_holds(struct taio_pool *pool, unsigned slot)
{
    return pool->slot[slot].out;
}

unsigned taio_pool_behind(struct taio_pool *pool, unsigned slot)
{
    return pool->slot[slot].behind;
}

int taio_pool_withdraw(struct taio_pool *pool, unsigned slot)
{
    int expected = READY;
    return atomic_compare_exchange_strong(&pool->slot[slot].state, &expected, WITHDRAWN);
}

/* Take the next index from the queue; NONE: it is empty. */
static uint32_t pool_take(struct taio_pool *pool)
{
    uint64_t head = atomic_load(&pool->head);
    for (;;) {
        if (head == atomic_load(&pool->tail))
            return NONE;
        /* If another worker moves `head` first, the loop may overwrite this entry. The swap then fails. */
        uint32_t slot = atomic_load_explicit(&pool->queue[head & pool->mask], memory_order_relaxed);
        if (atomic_compare_exchange_weak(&pool->head, &head, head + 1))
            return slot;
    }
}

/* Return a slot to the loop: push it on the stack. Returns 1 if the stack was empty. Then the caller owes a signal, before it may sleep: those
 * that push the next slots rely on it. */
static int pool_push(struct taio_pool *pool, uint32_t slot)
{
    uint32_t below = atomic_load_explicit(&pool->finished, memory_order_relaxed);
    do
        pool->slot[slot].next = below;
    while (!atomic_compare_exchange_weak_explicit(&pool->finished, &below, slot, memory_order_release, memory_order_relaxed));
    return below == NONE;
}

static void pool_signal(struct taio_pool *pool)
{
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(pool->event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

static void pool_finish(struct taio_pool *pool, uint32_t slot)
{
    if (pool_push(pool, slot))
        pool_signal(pool);
}

/* Read or write, as `extra` says: native.h, enum taio_operation. */
static void slot_transfer(struct slot *s, struct taio_scratch *scratch)
{
    struct iovec one = {s->memory, s->length};
    int whole = s->operation == TAIO_READ || s->operation == TAIO_WRITE;
    int writing = s->operation == TAIO_WRITE || s->operation == TAIO_WRITEV;
    int mapped = ((uintptr_t)s->extra & TAIO_MAPPED) != 0;
    struct taio_transfer t = {s->fd, s->flags, writing, whole ? &one : s->memory, whole ? 1 : s->length, s->offset, 0, mapped};
    uint64_t unit = (uint64_t)(uintptr_t)s->extra & ~(uint64_t)TAIO_MAPPED;
    s->result = unit > TAIO_BUFFERED_FD ? taio_transfer_through_scratch(&t, unit, scratch) : taio_transfer(&t);
    s->transferred = t.transferred;
}

/* Write all bytes with write(2); the result is the position after them. */
static void slot_append(struct slot *s)
{
    while ((uint64_t)s->transferred < s->length) {
        ssize_t n = write(s->fd, (char *)s->memory + s->transferred, s->length - (uint64_t)s->transferred);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            s->result = n < 0 ? -errno : -EIO;
            return;
        }
        s->transferred += n;
    }
    s->result = lseek(s->fd, 0, SEEK_CUR);
    if (s->result < 0)
        s->result = -errno;
}

/* Open a path once more, without O_DIRECT, if it still names the file of `fd`. Returns an fd, or -errno. For places without /proc. */
static int buffered_fd_by_path(int directory, const char *path, int flags, int fd)
{
    struct stat wanted, found;
    int again = openat(directory, path, (flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_DIRECT)) | O_NONBLOCK | O_NOCTTY);
    if (again < 0)
        return -errno;
    int is_same = fstat(fd, &wanted) == 0 && fstat(again, &found) == 0 && wanted.st_dev == found.st_dev && wanted.st_ino == found.st_ino;
    int status = fcntl(again, F_GETFL);
    if (is_same && status >= 0 && fcntl(again, F_SETFL, status & ~O_NONBLOCK) == 0)
        return again;
    close(again);
    return -ENOENT;
}

/* Open the second fd of a file that was opened for direct writing. `path`: NULL if it is not known. Returns 0, or -errno. */
static int open_buffered_fd(struct taio_description *description, int fd, int directory, const char *path, int flags)
{
    int is_file = S_ISREG(description->mode) || S_ISBLK(description->mode); /* opening a FIFO may block */
    if (!is_file || !(description->open_flags & O_DIRECT) || (description->open_flags & O_ACCMODE) == O_RDONLY)
        return 0;
    int second = taio_buffered_fd_open(fd);
    if (second < 0 && path != NULL && second != -EMFILE && second != -ENFILE) {
        int by_path = buffered_fd_by_path(directory, path, flags, fd);
        second = by_path < 0 ? second : by_path;
    }
    if (second >= 0)
        description->buffered_fd = second;
    else
        description->buffered_error = -second;
    return second < 0 ? second : 0;
}

/* Open and describe a regular file or a block device. Returns its fd, or -errno.
 * Opening a FIFO, a terminal or a device may block, or have effects. So look at the file first, open it without blocking, and look again at
 * what was opened: the name may refer to another file by then. */
static int64_t slot_open(struct slot *s)
{
    struct taio_description *description = s->extra;
    const char *path = s->memory;
    struct stat before;
    memset(description, 0, sizeof *description);
    description->buffered_fd = -1;
    if (fstatat(s->fd, path, &before, s->flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) == 0) {
        description->mode = before.st_mode;
        if (!S_ISREG(before.st_mode) && !S_ISBLK(before.st_mode) && !S_ISDIR(before.st_mode) && !S_ISLNK(before.st_mode))
            return -EOPNOTSUPP;
    }
    int fd = openat(s->fd, path, s->flags | O_NONBLOCK | O_NOCTTY, (mode_t)s->length);
    if (fd < 0 && errno == EAGAIN && S_ISREG(description->mode)) /* another process holds a lease (fcntl(2), F_SETLEASE): wait for it */
        fd = openat(s->fd, path, s->flags | O_NOCTTY, (mode_t)s->length);
    if (fd < 0)
        return -errno;
    int error = taio_describe_and_probe(fd, description);
    if (error == 0 && !S_ISREG(description->mode) && !S_ISBLK(description->mode))
        error = S_ISDIR(description->mode) ? -EISDIR : -EOPNOTSUPP;
    if (error == 0 && fcntl(fd, F_SETFL, (int)description->open_flags & ~O_NONBLOCK) < 0)
        error = -errno;
    if (error == 0)
        error = open_buffered_fd(description, fd, s->fd, path, s->flags);
    if (error != 0) {
        close(fd);
        return error;
    }
    description->open_flags &= ~(uint32_t)O_NONBLOCK;
    return fd;
}

/* Open, read and close; the fd stays open, in `whole`, if the file has more bytes than were read. */
static void slot_read_file(struct slot *s)
{
    struct taio_whole *whole = s->extra;
    char *memory = (char *)(uintptr_t)whole->memory;
    char beyond;
    int64_t fd = slot_open(s), n = 1;
    s->result = fd < 0 ? fd : 0;
    if (fd < 0)
        return;
    if (whole->description.size > whole->capacity) {
        whole->fd = (int32_t)fd;
        return;
    }
    uint64_t device = whole->description.device;
    uint64_t file = taio_file_of(makedev((unsigned)(device >> 32), (unsigned)device), whole->description.inode), left = taio_read_begins(file);
    while (n > 0 && (uint64_t)s->transferred < whole->first) { /* to the end, not to the size: files of /proc have none, and others may grow */
        n = read((int)fd, memory + s->transferred, whole->first - (uint64_t)s->transferred);
        if (n > 0)
            s->transferred += n;
        else if (n < 0 && errno == EINTR)
            n = 1;
    }
    if (n > 0 && whole->first == whole->capacity) /* the memory is full: look for one more byte */
        do
            n = read((int)fd, &beyond, 1);
        while (n < 0 && errno == EINTR);
    s->result = n < 0 ? -errno : s->transferred;
    if (s->transferred > 0)
        taio_read_has_ended(file, (int)fd, left);
    if (n > 0)
        whole->fd = (int32_t)fd;
    else
        close((int)fd);
}

/* Open, write and close. */
static void slot_write_file(struct slot *s)
{
    struct taio_whole *whole = s->extra;
    int64_t fd = slot_open(s);
    if (fd < 0) {
        s->result = fd;
        return;
    }
    struct iovec all = {(void *)(uintptr_t)whole->memory, whole->capacity};
    struct taio_transfer transfer = {.fd = (int)fd, .writing = 1, .vector = &all, .parts = 1};
    s->result = taio_transfer(&transfer);
    s->transferred = transfer.transferred;
    if (close((int)fd) < 0 && errno != EINTR && s->result >= 0)
        s->result = -errno;
}

static int64_t nanoseconds(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Call fstat(2) and store its result in `extra`. Returns -1 and sets errno on failure. */
static int slot_stat(struct slot *s)
{
    struct taio_stat *out = s->extra;
    struct stat st;
    if (fstat(s->fd, &st) < 0)
        return -1;
    *out = (struct taio_stat){
        .mode = st.st_mode, .inode = st.st_ino, .device = st.st_dev, .links = st.st_nlink, .uid = st.st_uid, .gid = st.st_gid,
        .rdev = st.st_rdev, .block_size = (uint64_t)st.st_blksize, .blocks = (uint64_t)st.st_blocks, .size = st.st_size,
        .atime_ns = nanoseconds(st.st_atim), .mtime_ns = nanoseconds(st.st_mtim), .ctime_ns = nanoseconds(st.st_ctim)};
    return 0;
}

/* Make the one call of a simple operation. Returns -1 and sets errno on failure. */
static int64_t slot_call_once(struct slot *s)
{
    switch (s->operation) {
    case TAIO_FSYNC:
        return fsync(s->fd);
    case TAIO_FDATASYNC:
        return fdatasync(s->fd);
    case TAIO_STAT:
        return slot_stat(s);
    case TAIO_TRUNCATE:
        return ftruncate(s->fd, s->offset);
    case TAIO_FALLOCATE:
        return fallocate(s->fd, s->flags, s->offset, (off_t)s->length);
    default:
        errno = ENOSYS;
        return -1;
    }
}

/* Fault in the pages of a mapping, one by one.
 * MADV_POPULATE_WRITE would hold the lock of the whole address space while the kernel looks for huge pages. That takes up to tens of
 * milliseconds, and blocks the event loop's next malloc. A page fault takes only the mapping's lock. Swapping 0 for 0 is a write that changes
 * nothing. */
static void slot_populate(struct slot *s)
{
    for (uint64_t at = 0; at < s->length; at += 4096) {
        char zero = 0;
        __atomic_compare_exchange_n((char *)s->memory + at, &zero, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    s->result = 0;
}

/* Return the fd of TAIO_KEPT_FD, or -1. */
static int slot_kept_fd(const struct slot *s)
{
    return (int)((uintptr_t)s->extra >> 1) - 1;
}

/* Run the slot's operation on its own fd, and store the result in the slot. */
static void slot_execute_on_fd(struct slot *s, struct taio_scratch *scratch)
{
    switch (s->operation) {
    case TAIO_READ:
    case TAIO_WRITE:
    case TAIO_READV:
    case TAIO_WRITEV:
        slot_transfer(s, scratch);
        return;
    case TAIO_READ_AND_ASK: {
        struct taio_residency *residency = s->extra;
        s->extra = NULL;
        s->operation = TAIO_READ;
        slot_transfer(s, scratch);
        if (s->result >= 0 && s->transferred > 0)
            taio_residency_find(residency, s->fd, s->offset);
        return;
    }
    case TAIO_PIECES:
        ((struct taio_pieces *)s->memory)->fd = s->fd;
        s->transferred = taio_pieces_transfer(s->memory, scratch);
        s->result = 0;
        return;
    case TAIO_OPEN:
        do
            s->result = slot_open(s);
        while (s->result == -EINTR);
        return;
    case TAIO_READ_FILE:
        slot_read_file(s);
        return;
    case TAIO_WRITE_FILE:
        slot_write_file(s);
        return;
    case TAIO_APPEND:
        slot_append(s);
        return;
    case TAIO_CURSOR_READ:
        s->result = s->transferred = taio_cursor_read(s->extra, s->fd, s->memory, s->length, scratch);
        if (s->result < 0)
            s->transferred = 0;
        return;
    case TAIO_CURSOR_WRITE:
        s->result = taio_cursor_write(s->extra, s->fd, s->memory, s->length, &s->transferred, scratch);
        return;
    case TAIO_CURSOR_SEEK:
        s->result = taio_cursor_seek(s->extra, s->fd, s->offset, s->flags);
        return;
    case TAIO_CLOSE: /* not again after EINTR: the fd is closed, and its number may belong to another file by now */
        if (s->memory != NULL)
            taio_cursor_seek(s->memory, s->fd, 0, SEEK_CUR);
        if (s->extra != NULL)
            close(slot_kept_fd(s));
        s->result = !s->flags && close(s->fd) < 0 && errno != EINTR ? -errno : 0;
        return;
    case TAIO_SEEK:
        s->result = lseek(s->fd, s->offset, s->flags);
        if (s->result < 0)
            s->result = -errno;
        return;
    case TAIO_POPULATE:
        slot_populate(s);
        return;
    case TAIO_GATHER:
        s->result = taio_gather(s->extra, s->memory, s->length);
        return;
    case TAIO_NAME:
        s->result = taio_name_run(s->extra);
        return;
    case TAIO_INSPECT:
        s->result = taio_memory_is_mapped((uint64_t)(uintptr_t)s->memory, s->length);
        return;
    case TAIO_DESCRIBE:
        s->result = taio_describe_and_probe(s->fd, s->extra);
        if (s->result == 0 && s->flags)
            s->result = open_buffered_fd(s->extra, s->fd, -1, NULL, 0);
        return;
    default:
        do
            s->result = slot_call_once(s) < 0 ? -errno : 0;
        while (s->result == -EINTR);
    }
}

/* Return whether the operation is to use an fd without O_DIRECT. */
static int slot_needs_buffered_fd(const struct slot *s)
{
    int may = s->operation == TAIO_WRITE || s->operation == TAIO_WRITEV || s->operation == TAIO_APPEND || s->operation == TAIO_PIECES;
    return may && ((uintptr_t)s->extra & TAIO_BUFFERED_FD) != 0;
}

enum effect { NO_EFFECT, READS, CHANGES };

/* Return what the operation may do to the times of a file: set that of access, or change the others. */
static enum effect slot_effect(const struct slot *s)
{
    switch (s->operation) {
    case TAIO_READ:
    case TAIO_READV:
    case TAIO_READ_AND_ASK:
    case TAIO_CURSOR_READ:
        return READS;
    case TAIO_WRITE:
    case TAIO_WRITEV:
    case TAIO_WRITE_FILE:
    case TAIO_APPEND:
    case TAIO_CURSOR_WRITE:
    case TAIO_TRUNCATE:
    case TAIO_FALLOCATE:
    case TAIO_OPEN: /* it may truncate */
    case TAIO_NAME:
        return CHANGES;
    case TAIO_PIECES:
        return ((const struct taio_pieces *)s->memory)->writing ? CHANGES : READS;
    default:
        return NO_EFFECT;
    }
}

/* Run the slot's operation, on an fd without O_DIRECT if it needs one. */
static void slot_execute_anywhere(struct slot *s, struct taio_scratch *scratch)
{
    if (!slot_needs_buffered_fd(s)) {
        slot_execute_on_fd(s, scratch);
        return;
    }
    int kept = slot_kept_fd(s), buffered_fd = kept >= 0 ? kept : taio_buffered_fd_open(s->fd);
    if (buffered_fd < 0) {
        s->result = buffered_fd;
        return;
    }
    s->fd = buffered_fd;
    s->extra = NULL;
    slot_execute_on_fd(s, scratch);
    if (kept < 0)
        close(buffered_fd); /* its error is ignored: the write reported its own, and a network filesystem's late ones come from fsync */
}

/* Run the slot's operation. */
static void slot_execute(struct slot *s, struct taio_scratch *scratch)
{
    enum effect effect = slot_effect(s); /* now: some operations put another in their place */
    int fd = s->fd;
    uint64_t file = taio_use_of(fd), left = effect == READS ? taio_read_begins(file) : 0;
    slot_execute_anywhere(s, scratch);
    if (effect == CHANGES)
        taio_note_change();
    else if (s->transferred > 0)
        taio_read_has_ended(file, fd, left);
}

/* Read what is cached of what the slot wants, or start the read-ahead. */
static void slot_read_cached(struct slot *s)
{
    uint64_t file = taio_use_of(s->fd), left = taio_read_begins(file);
    s->result = taio_pread_nowait(s->fd, s->memory, s->length, s->offset);
    if (s->result > 0)
        taio_read_has_ended(file, s->fd, left);
}

/* Block all signals but those of faults. */
static void block_signals(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t all;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* Python handles signals in the main thread */
}

/* Make the calling worker the owner of a slot. Returns 0 if the loop has withdrawn it: then it is on the stack already. */
static int pool_claim(struct taio_pool *pool, uint32_t slot)
{
    int expected = READY;
    if (atomic_compare_exchange_strong(&pool->slot[slot].state, &expected, TAKEN))
        return 1;
    pool->slot[slot].result = -ECANCELED;
    pool_finish(pool, slot);
    return 0;
}

/* Run one slot, unless it was withdrawn. */
static void pool_serve_one(struct taio_pool *pool, uint32_t slot, struct taio_scratch *scratch)
{
    if (pool_claim(pool, slot)) {
        slot_execute(&pool->slot[slot], scratch);
        pool_finish(pool, slot);
    }
}

/* Run reads whose pages are on their way. Those that are there by now are copied one after the other, and the loop gets them together: each time
 * that it is woken costs it more than a copy. Before the worker waits for one that is not there, the loop gets all that are. */
static void pool_serve_started(struct taio_pool *pool, const uint32_t *slots, uint32_t count, struct taio_scratch *scratch)
{
    int owed = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct slot *s = &pool->slot[slots[i]];
        if (!pool_claim(pool, slots[i]))
            continue;
        slot_read_cached(s);
        if (s->result == (int64_t)s->length) {
            s->transferred = s->result;
        } else {
            if (owed)
                pool_signal(pool);
            owed = 0;
            slot_execute(s, scratch);
        }
        owed |= pool_push(pool, slots[i]);
    }
    if (owed)
        pool_signal(pool);
}

/* Run a chain of slots. Writes run in order.
 * Of reads, first copy what the page cache has; RWF_NOWAIT also starts the read-ahead of pages that are not cached. Then wait for the others,
 * so that the device works on all of them at once. Until a worker waits for one it is READY again, and the loop may withdraw it. */
static void pool_serve(struct taio_pool *pool, uint32_t first, struct taio_scratch *scratch)
{
    uint32_t left[TAIO_CHAIN], count = 0;
    int reads = pool->slot[first].operation == TAIO_READ && pool->slot[first].behind != NONE;
    for (uint32_t slot = first, behind; slot != NONE; slot = behind) {
        struct slot *s = &pool->slot[slot];
        behind = s->behind; /* read it now: once the slot is finished, the loop owns it */
        if (!reads) {
            pool_serve_one(pool, slot, scratch);
            continue;
        }
        if (!pool_claim(pool, slot))
            continue;
        slot_read_cached(s);
        if (s->result != -EAGAIN) { /* a part may be in the caller's memory already, so the loop must not withdraw it */
            if (s->result == (int64_t)s->length)
                s->transferred = s->result;
            else
                slot_execute(s, scratch);
            pool_finish(pool, slot);
            continue;
        }
        atomic_store(&s->state, READY);
        left[count++] = slot;
    }
    pool_serve_started(pool, left, count, scratch);
}

void taio_pool_work(struct taio_pool *pool)
{
    struct taio_scratch scratch = {NULL};
    block_signals();
    for (;;) {
        uint32_t slot = pool_take(pool);
        if (slot == NONE) {
            uint32_t seen = atomic_load(&pool->wakeups);
            atomic_fetch_add(&pool->sleepers, 1);
            atomic_store(&pool->waking, 0); /* a wake-up that came before we sleep must not suppress the next one */
            if (atomic_load(&pool->head) == atomic_load(&pool->tail)) {
                if (atomic_load(&pool->stopping)) {
                    atomic_fetch_sub(&pool->sleepers, 1);
                    taio_scratch_free(&scratch);
                    taio_transfer_end_worker();
                    return;
                }
                syscall(SYS_futex, &pool->wakeups, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
            }
            atomic_fetch_sub(&pool->sleepers, 1);
            atomic_store(&pool->waking, 0);
            continue;
        }
        if (atomic_load(&pool->head) != atomic_load(&pool->tail))
            pool_wake_one(pool);
        pool_serve(pool, slot, &scratch);
    }
}

void taio_pool_stop(struct taio_pool *pool)
{
    atomic_store(&pool->stopping, 1);
    atomic_fetch_add(&pool->wakeups, 1);
    futex_wake(&pool->wakeups, INT_MAX);
}

int taio_pool_reap(struct taio_pool *pool, struct taio_completion *out, int room)
{
    int taken = 0;
    if (room < (int)pool->slots || atomic_load_explicit(&pool->finished, memory_order_relaxed) == NONE)
        return 0; /* the stack can only be taken whole, so there must be room for every slot */
    uint32_t slot = atomic_exchange_explicit(&pool->finished, NONE, memory_order_acquire);
    for (; slot != NONE; slot = pool->slot[slot].next) {
        struct slot *s = &pool->slot[slot];
        out[taken++] = (struct taio_completion){s->token, s->result, s->transferred};
        s->out = 0;
        atomic_store_explicit(&s->state, IDLE, memory_order_relaxed);
    }
    for (int i = 0, j = taken - 1; i < j; i++, j--) { /* the top finished last: return them in the order in which they finished */
        struct taio_completion swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
    return taken;
}
