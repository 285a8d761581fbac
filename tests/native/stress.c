/* A random test of the native code without Python, for sanitizers. It drives both lanes as the engine does, and checks every result.
 *
 * usage: stress FOLDER SECONDS [SEED]      FOLDER: on a filesystem with O_DIRECT; two files and a tree are made there, and removed
 *
 * One thread is the event loop: it submits, withdraws, cancels and reaps. Each slot has one request at a time, and its own region of the file
 * and of memory. So each read must return what the slot's last write has written. The rounds differ in
 * - the number of slots and of workers;
 * - whether the loop sleeps on the eventfd or spins: when it spins, no system call orders what the atomics should order;
 * - whether completions are read from the mapped ring or by io_getevents;
 * - whether the workers are stopped while they still have work;
 * - how many submitters there are, each with a thread that calls io_submit. */
#include "stress.h"

#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum { REGION = 16384, BLOCK = 4096, UNIT = 512, PARTS = 3, PIECES = 12, MOST_SLOTS = 256, MOST_WORKERS = 8, MOST_SUBMITTERS = 3, UNTOUCHED = 0x5a };

enum lane { FREE, RING, POOL, RING_PIECES };

/* A slot of both lanes and its request. The loop owns it. While a worker has the request, the worker owns what its arguments point to. */
struct holder {
    enum lane lane;
    uint64_t token;
    int operation; /* IOCB_CMD_* or TAIO_* */
    int withdrawn, cancel_accepted, refused;
    int handed_over; /* 1: a submitter calls io_submit for it */
    unsigned char value;   /* the pattern in its region of the file */
    unsigned char writing; /* the pattern that its request writes */
    int fd;
    int64_t offset;
    char *memory;
    struct iovec parts[PARTS];
    size_t before;    /* a read by a worker: bytes at the start of the memory that it must not touch */
    int64_t expected; /* bytes that the request moves */
    struct taio_description description;
    struct taio_stat stat;
    struct name_call *name;
    struct holder *leader; /* of a slot that a many-piece request holds in the ring: the holder of that request */
    struct taio_pieces pieces;
    struct taio_piece piece[PIECES];
    char *slab;
    unsigned out; /* slots of the ring that its many-piece request holds, including its own */
    int stopped;  /* 1: pieces may have been left out */
};

uint64_t seed;
static uint64_t state;
static char path[4096], append_path[4096];
static int event_fd, direct_fd, buffered_fd, append_fd, quiet_pipe[2];
static unsigned slots;
static struct holder holders[MOST_SLOTS];
static struct taio_ring *ring;
static struct taio_pool *pool;
static struct taio_submitter *submitters[MOST_SUBMITTERS];
static unsigned submitter_count;
static int few_events; /* 1: the kernel's ring is too small */
static unsigned chain_first, chain_last, chained; /* the chain that is not handed over yet */
static int chain_reads; /* 1: it has reads, 0: writes */
static uint64_t next_token, submits, completions, withdrawals, cancels, refusals;

uint64_t draw(uint64_t below) /* xorshift: a seed gives the same numbers on every machine */
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *worker(void *argument)
{
    taio_pool_work(argument);
    return NULL;
}

/* Return the byte that `value` stands for at an offset of the file: another one for the next offset, and for the next unit. */
static char pattern(unsigned char value, int64_t offset)
{
    return (char)(value + offset + (offset >> 8) * 7);
}

/* Let a worker copy now by memcpy, now by the kernel, as for memory of a mapped file. */
static uint64_t mapped_or_not(void)
{
    return draw(2) ? TAIO_MAPPED : 0;
}

static void fill(char *memory, size_t length, unsigned char value, int64_t offset)
{
    for (size_t i = 0; i < length; i++)
        memory[i] = pattern(value, offset + (int64_t)i);
}

static int is_filled(const char *memory, size_t length, unsigned char value, int64_t offset)
{
    for (size_t i = 0; i < length; i++)
        if (memory[i] != pattern(value, offset + (int64_t)i))
            return 0;
    return 1;
}

static int is_untouched(const char *memory, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (memory[i] != UNTOUCHED)
            return 0;
    return 1;
}

static int64_t place(unsigned slot)
{
    return (int64_t)slot * REGION;
}

static void cut_into_parts(struct holder *h)
{
    size_t first = draw(REGION), second = draw(REGION - first);
    h->parts[0] = (struct iovec){h->memory, first};
    h->parts[1] = (struct iovec){h->memory + first, second};
    h->parts[2] = (struct iovec){h->memory + first + second, REGION - first - second};
}

static void begin(struct holder *h, enum lane lane, int operation)
{
    h->lane = lane;
    h->token = next_token++ << 32 | (uint64_t)(h - holders);
    h->operation = operation;
    h->withdrawn = h->cancel_accepted = h->refused = h->handed_over = 0;
    h->writing = (unsigned char)draw(256);
    submits++;
}

/* Cut the region into pieces whose lengths are multiples of `unit` bytes. Direct I/O needs that unless it goes through a slab. */
static void make_pieces(struct holder *h, int64_t offset, int fd, int writing, unsigned unit)
{
    unsigned count = 1 + (unsigned)draw(PIECES);
    uint64_t at = 0;
    for (unsigned i = 0; i < count; i++) {
        uint64_t left = (REGION - at) / unit, length = (i + 1 == count ? left : left ? draw(left) : 0) * unit;
        h->piece[i] = (struct taio_piece){offset + (int64_t)at, (uint64_t)(uintptr_t)h->memory + at, length, TAIO_UNTRIED};
        at += length;
    }
    unsigned pieces_unit = fd == buffered_fd ? 1 : UNIT;
    h->pieces = (struct taio_pieces){.pieces = h->piece, .count = count, .unit = pieces_unit, .memory_unit = pieces_unit, .fd = fd, .writing = writing, .mapped = (int)draw(2)};
    memset(h->memory, UNTOUCHED, REGION);
    if (writing)
        fill(h->memory, REGION, h->writing, offset);
}

static void submit_pieces(unsigned slot)
{
    struct holder *h = &holders[slot];
    int in_slab = (int)draw(2), writing = !in_slab && draw(2);
    begin(h, RING_PIECES, TAIO_PIECES);
    make_pieces(h, place(slot), direct_fd, writing, in_slab ? 1 : UNIT);
    h->pieces.width = 1 + (unsigned)draw(8);
    h->leader = h;
    h->out = 0;
    h->stopped = 0;
    if (submitter_count > 0 && !few_events && draw(2))
        h->pieces.submitter = submitters[draw(submitter_count)];
    if (draw(16) == 0) {
        h->pieces.fd = -1;
        h->refused = 1;
    }
    if (in_slab) {
        h->pieces.stride = REGION + 2 * UNIT;
        h->slab = aligned_alloc(BLOCK, (h->pieces.width * h->pieces.stride + BLOCK) / BLOCK * BLOCK);
        h->pieces.slab_address = (uint64_t)(uintptr_t)h->slab;
    }
    for (unsigned i = 0; i < slots && h->out < h->pieces.width; i++) {
        unsigned other = (slot + i) % slots;
        if (i > 0 && holders[other].lane != FREE)
            continue;
        if (i > 0)
            begin(&holders[other], RING_PIECES, TAIO_PIECES);
        holders[other].leader = h;
        if (!taio_ring_prepare_pieces(ring, other, holders[other].token, &h->pieces, h->out)) {
            CHECK(i > 0);
            holders[other].lane = FREE;
            submits--;
            break;
        }
        h->out++;
    }
}

/* Take a slot from a many-piece request. With its last slot the request has completed: check the pieces. */
static void release_pieces_slot(struct holder *h)
{
    struct holder *leader = h->leader;
    if (h != leader)
        h->lane = FREE;
    if (--leader->out > 0)
        return;
    leader->lane = FREE;
    CHECK(leader->pieces.out == 0);
    int whole = taio_pieces_first_open(&leader->pieces) == leader->pieces.count;
    CHECK(whole || leader->refused || leader->stopped || leader->pieces.slept);
    for (unsigned i = 0; i < leader->pieces.count; i++) {
        const struct taio_piece *piece = &leader->piece[i];
        if (piece->result == TAIO_UNTRIED)
            continue;
        CHECK(piece->result == (leader->refused ? -EBADF : (int64_t)piece->length));
        if (!leader->pieces.writing && !leader->refused)
            CHECK(is_filled((char *)(uintptr_t)piece->memory, piece->length, leader->value, piece->offset));
    }
    if (leader->pieces.writing && whole) {
        leader->value = leader->writing;
    } else if (leader->pieces.writing) { /* written in part: restore the old pattern */
        int64_t offset = place((unsigned)(leader - holders));
        fill(leader->memory, REGION, leader->value, offset);
        CHECK(pwrite(direct_fd, leader->memory, REGION, offset) == REGION);
    }
    free(leader->slab);
    leader->slab = NULL;
}

static int to_ring(unsigned slot)
{
    static const int commands[] = {IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IOCB_CMD_PREADV, IOCB_CMD_PWRITEV, IOCB_CMD_FSYNC, IOCB_CMD_FDSYNC,
                                   IOCB_CMD_POLL};
    struct holder *h = &holders[slot];
    int command = commands[draw(sizeof commands / sizeof *commands)], fd = direct_fd;
    uint64_t memory = (uint64_t)(uintptr_t)h->memory, length = REGION;
    int64_t offset = place(slot);
    begin(h, RING, command);
    memset(h->memory, UNTOUCHED, REGION);
    if (command == IOCB_CMD_PWRITE || command == IOCB_CMD_PWRITEV)
        fill(h->memory, REGION, h->writing, offset);
    if (command == IOCB_CMD_PREADV || command == IOCB_CMD_PWRITEV) {
        h->parts[0] = (struct iovec){h->memory, BLOCK};
        h->parts[1] = (struct iovec){h->memory + BLOCK, 2 * BLOCK};
        h->parts[2] = (struct iovec){h->memory + 3 * BLOCK, BLOCK};
        memory = (uint64_t)(uintptr_t)h->parts;
        length = PARTS;
    } else if (command == IOCB_CMD_FSYNC || command == IOCB_CMD_FDSYNC) {
        memory = length = 0;
        offset = 0;
    } else if (command == IOCB_CMD_POLL) {
        fd = quiet_pipe[0];
        memory = POLLIN;
        length = 0;
        offset = 0;
    }
    if (draw(16) == 0) { /* io_submit stops here, and must be called again for the requests behind */
        fd = -1;
        h->refused = 1;
    }
    if (submitter_count > 0 && draw(2)) {
        h->handed_over = 1;
        taio_ring_gather(ring, submitters[draw(submitter_count)], slot, h->token, command, fd, memory, length, offset, 0);
    } else {
        taio_ring_prepare(ring, slot, h->token, command, fd, memory, length, offset, 0);
    }
    return command == IOCB_CMD_POLL && !h->refused;
}

/* Return the `extra` of a write through the page cache: by an fd opened for it, or by the kept one. */
static uint64_t through_cache(void)
{
    return draw(2) ? TAIO_KEPT_FD(buffered_fd) : TAIO_BUFFERED_FD;
}

static void hand_over_chain(void)
{
    if (chained > 0)
        taio_pool_hand_over(pool, chain_first);
    chained = 0;
}

static void to_pool(unsigned slot)
{
    struct holder *h = &holders[slot];
    int operation = (int)draw(TAIO_POPULATE + 1), fd = draw(2) ? buffered_fd : direct_fd, flags = 0;
    uint64_t memory = (uint64_t)(uintptr_t)h->memory, length = REGION, extra = 0;
    int64_t offset = place(slot);
    if (operation == TAIO_TRUNCATE || operation == TAIO_CLOSE) /* they would harm the other slots' requests */
        operation = TAIO_READ;
    if (draw(4) == 0)
        operation = TAIO_NAME;
    begin(h, POOL, operation);
    h->before = 0;
    h->expected = REGION;
    memset(h->memory, UNTOUCHED, REGION);
    if (operation == TAIO_WRITE || operation == TAIO_WRITEV)
        fill(h->memory, REGION, h->writing, offset);
    switch (operation) {
    case TAIO_READ:
        if (fd == direct_fd && draw(2)) { /* any offset, any address: through the worker's scratch memory */
            h->before = draw(2 * UNIT);
            extra = UNIT | mapped_or_not();
            memory += h->before;
            length -= h->before + draw(UNIT);
            offset += (int64_t)draw(h->before + 1);
            h->expected = (int64_t)length;
        }
        break;
    case TAIO_WRITE:
        if (fd == direct_fd)
            extra = draw(2) ? UNIT | mapped_or_not() : through_cache();
        break;
    case TAIO_READV:
    case TAIO_WRITEV:
        cut_into_parts(h);
        if (fd == direct_fd)
            extra = operation == TAIO_WRITEV && draw(2) ? through_cache() : UNIT | mapped_or_not();
        memory = (uint64_t)(uintptr_t)h->parts;
        length = PARTS;
        break;
    case TAIO_PIECES:
        make_pieces(h, offset, fd, (int)draw(2), 1);
        if (fd == direct_fd && h->pieces.writing)
            make_pieces(h, offset, fd, 1, UNIT);
        memory = (uint64_t)(uintptr_t)&h->pieces;
        break;
    case TAIO_APPEND:
        fd = append_fd;
        length = 1 + draw(BLOCK);
        break;
    case TAIO_OPEN:
        fd = AT_FDCWD;
        memory = (uint64_t)(uintptr_t)(draw(4) ? path : "/nonexistent/file");
        h->refused = memory != (uint64_t)(uintptr_t)path;
        length = 0666;
        flags = O_RDONLY | O_CLOEXEC;
        extra = (uint64_t)(uintptr_t)&h->description;
        break;
    case TAIO_STAT:
        extra = (uint64_t)(uintptr_t)&h->stat;
        break;
    case TAIO_DESCRIBE:
        extra = (uint64_t)(uintptr_t)&h->description;
        break;
    case TAIO_SEEK:
        offset = 0;
        flags = SEEK_END;
        break;
    case TAIO_NAME:
        fd = -1;
        h->name = names_begin(slot, &extra);
        break;
    default:
        break;
    }
    h->fd = fd;
    h->offset = offset;
    int reads = operation == TAIO_READ && extra == 0, others = operation == TAIO_WRITE || operation == TAIO_WRITEV || operation == TAIO_APPEND;
    if (draw(2) || !(reads || others)) {
        taio_pool_prepare(pool, slot, TAIO_NONE, h->token, operation, fd, memory, length, offset, flags, extra);
        taio_pool_hand_over(pool, slot);
        return;
    }
    if (chain_reads != reads)
        hand_over_chain();
    chain_reads = reads;
    taio_pool_prepare(pool, slot, chained > 0 ? chain_last : TAIO_NONE, h->token, operation, fd, memory, length, offset, flags, extra);
    if (chained++ == 0)
        chain_first = slot;
    chain_last = slot;
    if (chained == TAIO_CHAIN || draw(4) == 0)
        hand_over_chain();
}

static void complete(const struct taio_completion *c)
{
    unsigned slot = (unsigned)c->token & UINT32_MAX;
    struct holder *h = &holders[slot];
    CHECK(slot < slots && h->lane != FREE && h->token == c->token); /* a completion comes once, and for its own request */
    completions++;
    if (h->lane == RING_PIECES) {
        release_pieces_slot(h);
        return;
    }
    if (h->handed_over && few_events && c->result == -EAGAIN) {
        h->lane = FREE; /* the ring was full for long */
        return;
    }
    if (h->lane == POOL && h->operation == TAIO_NAME) {
        names_end(h->name, c->result, !h->withdrawn);
        h->name = NULL;
    }
    if (h->withdrawn)
        CHECK(c->result == -ECANCELED);
    else if (h->lane == RING)
        switch (h->operation) {
        case IOCB_CMD_PREAD:
        case IOCB_CMD_PREADV:
            CHECK(c->result == (h->refused ? -EBADF : REGION));
            CHECK(h->refused || is_filled(h->memory, REGION, h->value, place(slot)));
            break;
        case IOCB_CMD_PWRITE:
        case IOCB_CMD_PWRITEV:
            CHECK(c->result == (h->refused ? -EBADF : REGION));
            if (!h->refused)
                h->value = h->writing;
            break;
        case IOCB_CMD_POLL:
            CHECK(h->refused ? c->result == -EBADF : c->result == 0 ? h->cancel_accepted : (c->result & POLLIN) != 0);
            break;
        default:
            CHECK(c->result == (h->refused ? -EBADF : 0));
        }
    else
        switch (h->operation) {
        case TAIO_READ:
        case TAIO_READV:
            CHECK(c->result == h->expected && c->transferred == h->expected);
            CHECK(is_untouched(h->memory, h->before));
            CHECK(is_filled(h->memory + h->before, (size_t)h->expected, h->value, h->offset));
            CHECK(is_untouched(h->memory + h->before + h->expected, REGION - h->before - (size_t)h->expected));
            break;
        case TAIO_PIECES:
            CHECK(taio_pieces_first_open(&h->pieces) == h->pieces.count && c->transferred == REGION);
            if (h->pieces.writing)
                h->value = h->writing;
            else
                CHECK(is_filled(h->memory, REGION, h->value, place(slot)));
            break;
        case TAIO_WRITE:
        case TAIO_WRITEV:
            CHECK(c->result == REGION && c->transferred == REGION);
            h->value = h->writing;
            break;
        case TAIO_APPEND:
            CHECK(c->result >= c->transferred && c->transferred > 0);
            break;
        case TAIO_OPEN:
            if (h->refused) {
                CHECK(c->result == -ENOENT);
            } else {
                CHECK(c->result >= 0 && S_ISREG(h->description.mode));
                close((int)c->result);
            }
            break;
        case TAIO_SEEK:
            CHECK(c->result >= place(slots));
            break;
        case TAIO_STAT:
            CHECK(c->result == 0 && h->stat.size >= place(slots));
            break;
        case TAIO_DESCRIBE:
            CHECK(c->result == 0 && (int64_t)h->description.size >= place(slots));
            break;
        case TAIO_POPULATE:
            CHECK(c->result == 0 && is_untouched(h->memory, REGION));
            break;
        case TAIO_NAME: /* checked above */
            break;
        default:
            CHECK(c->result == 0);
        }
    h->lane = FREE;
}

static unsigned outstanding(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < slots; i++)
        count += holders[i].lane != FREE;
    return count;
}

static void reap(int drain)
{
    static struct taio_completion out[2 * MOST_SLOTS];
    int n = taio_reap(ring, pool, drain ? event_fd : -1, out, 2 * (int)slots);
    CHECK(n >= 0 && n <= 2 * (int)slots);
    for (int i = 0; i < n; i++)
        complete(&out[i]);
}

static void submit(void)
{
    static struct taio_completion out[MOST_SLOTS];
    for (unsigned i = 0; i < submitter_count; i++)
        CHECK(taio_submitter_hand_over(submitters[i], 4) >= 0);
    int n = taio_ring_submit(ring, out, (int)slots) & ~TAIO_RING_SLEPT;
    for (int i = 0; i < n; i++) {
        const struct holder *h = &holders[out[i].token & UINT32_MAX];
        CHECK(h->lane == RING_PIECES ? h->leader->refused : h->refused);
        refusals++;
        complete(&out[i]);
    }
}

static void sleep_or_spin(int sleeps)
{
    if (sleeps) {
        struct pollfd watch = {event_fd, POLLIN, 0};
        CHECK(poll(&watch, 1, 20000) == 1); /* otherwise a wake-up was lost */
    }
    reap(sleeps);
}

static void disturb(unsigned slot)
{
    struct holder *h = &holders[slot];
    if (h->lane == POOL && !h->withdrawn && taio_pool_withdraw(pool, slot)) {
        h->withdrawn = 1; /* it never runs: an open leaves no fd, a write no bytes */
        withdrawals++;
    } else if (h->lane == RING && taio_ring_withdraw(ring, slot)) {
        h->lane = FREE;
        withdrawals++;
    } else if (h->lane == RING_PIECES) {
        h->leader->pieces.stop = 1;
        h->leader->stopped = 1;
        if (taio_ring_withdraw(ring, slot)) {
            release_pieces_slot(h);
            withdrawals++;
        }
    } else if (h->lane == RING && h->operation == IOCB_CMD_POLL && !h->cancel_accepted) {
        h->cancel_accepted = taio_ring_cancel(ring, slot) == 0;
        cancels += (uint64_t)h->cancel_accepted;
    } else if (h->lane == RING) {
        CHECK(h->operation == IOCB_CMD_POLL || taio_ring_cancel(ring, slot) != 0); /* the kernel cannot cancel disk I/O */
    }
}

static void make_files(void)
{
    char *block = aligned_alloc(BLOCK, REGION);
    CHECK(ftruncate(append_fd, 0) == 0);
    for (unsigned i = 0; i < slots; i++) {
        fill(block, REGION, 0, place(i));
        CHECK(pwrite(buffered_fd, block, REGION, place(i)) == REGION);
        holders[i] = (struct holder){.lane = FREE, .memory = aligned_alloc(BLOCK, REGION)};
    }
    CHECK(fsync(buffered_fd) == 0);
    free(block);
}

static void play_round(double until)
{
    pthread_t threads[MOST_WORKERS];
    unsigned workers = 1 + (unsigned)draw(MOST_WORKERS), steps = 0;
    int sleeps = (int)draw(2), by_call = draw(4) == 0;
    uint64_t context;
    few_events = draw(3) == 0;
    submitter_count = (unsigned)draw(MOST_SUBMITTERS + 1);
    slots = 1 + (unsigned)draw(MOST_SLOTS);
    make_files();
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = taio_io_setup(few_events ? 1 : slots, &context); /* with few events io_submit finds the ring full */
    CHECK(error == 0);
    ring = taio_ring_new(context, slots, event_fd);
    pool = taio_pool_new(slots, event_fd);
    CHECK(ring != NULL && pool != NULL && taio_ring_is_mapped(ring));
    if (by_call)
        taio_ring_use_getevents(ring);
    for (unsigned i = 0; i < submitter_count; i++)
        CHECK((submitters[i] = taio_submitter_new(ring, (int)draw(2))) != NULL);
    for (unsigned i = 0; i < workers; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, pool) == 0);

    while (steps++ < 100 && now() < until) {
        for (unsigned burst = (unsigned)draw(slots + 1); burst > 0; burst--) {
            unsigned slot = (unsigned)draw(slots);
            if (holders[slot].lane != FREE) {
                if (draw(4) == 0)
                    disturb(slot);
            } else if (draw(2)) {
                to_pool(slot);
            } else if (draw(4) == 0) {
                submit_pieces(slot);
            } else {
                to_ring(slot);
                if (draw(4) == 0)
                    submit();
            }
        }
        hand_over_chain();
        submit();
        names_inline();
        reap(0);
        if (draw(8) == 0) { /* let the polls in flight complete */
            char byte = 0;
            CHECK(write(quiet_pipe[1], &byte, 1) == 1);
            for (unsigned i = 0; i < slots; i++)
                while (holders[i].lane == RING && holders[i].operation == IOCB_CMD_POLL && taio_ring_prepared(ring) == 0)
                    sleep_or_spin(sleeps && outstanding() > 0);
            CHECK(read(quiet_pipe[0], &byte, 1) == 1);
        } else if (draw(2) && outstanding() > 0) {
            for (unsigned i = 0; i < slots; i++)
                if (holders[i].lane == POOL) { /* a worker's request surely completes, so the loop may sleep */
                    sleep_or_spin(sleeps);
                    break;
                }
        }
    }

    int early = (int)draw(2);
    if (early)
        taio_pool_stop(pool); /* the workers first finish what is queued */
    while (outstanding() > 0) {
        submit();
        for (unsigned i = 0; i < slots; i++)
            if (holders[i].lane == RING && holders[i].operation == IOCB_CMD_POLL)
                disturb(i);
        if (outstanding() > 0)
            sleep_or_spin(sleeps && taio_ring_prepared(ring) == 0);
    }
    if (!early)
        taio_pool_stop(pool);
    for (unsigned i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < submitter_count; i++)
        taio_submitter_stop(submitters[i]);
    for (unsigned i = 0; i < submitter_count; i++) {
        while (sleeps && !taio_submitter_has_left(submitters[i]))
            sleep_or_spin(1);
        taio_submitter_free(submitters[i]);
    }
    CHECK(taio_reap(ring, pool, event_fd, (struct taio_completion[2 * MOST_SLOTS]){{0}}, 2 * (int)slots) == 0);
    taio_ring_free(ring);
    taio_pool_free(pool);
    CHECK(taio_io_destroy(context) == 0);
    close(event_fd);
    for (unsigned i = 0; i < slots; i++) {
        char *memory = holders[i].memory;
        CHECK(pread(buffered_fd, memory, REGION, place(i)) == REGION && is_filled(memory, REGION, holders[i].value, place(i)));
        free(memory);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s FOLDER SECONDS [SEED]\n", argv[0]);
        return 2;
    }
    double until = now() + atof(argv[2]);
    seed = state = (argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)(now() * 1e9)) | 1;
    snprintf(path, sizeof path, "%s/stress-%d", argv[1], (int)getpid());
    snprintf(append_path, sizeof append_path, "%s/stress-%d-append", argv[1], (int)getpid());
    buffered_fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    direct_fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    append_fd = open(append_path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(buffered_fd >= 0 && direct_fd >= 0 && append_fd >= 0);
    CHECK(pipe(quiet_pipe) == 0);
    names_make_tree(argv[1]);
    unsigned rounds = 0;
    do {
        play_round(until);
        rounds++;
    } while (now() < until);
    unlink(path);
    unlink(append_path);
    names_remove_tree();
    printf("%u rounds, %" PRIu64 " requests, %" PRIu64 " completions, %" PRIu64 " withdrawn, %" PRIu64 " polls cancelled, %" PRIu64
           " refused (seed %" PRIu64 ")\n",
           rounds, submits, completions, withdrawals, cancels, refusals, seed);
    return 0;
}
