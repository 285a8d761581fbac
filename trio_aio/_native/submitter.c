/* Submitters: threads that call io_submit where that call may sleep.
 *
 * How the kernel works. io_submit starts a write only when it has the filesystem's permission to write (sb_start_write). A frozen filesystem
 * withholds that for as long as a snapshot takes, RWF_NOWAIT or not. On FUSE, io_submit asks a server for attributes, and sleeps when more
 * requests are in flight than the server takes (max_background). On a file whose map of blocks is not in memory it reads that map first.
 *
 * What we do about it. The loop fills the iocbs as usual, and hands them over, some at a time and at the end of the tick, to a thread that calls
 * io_submit. Completions come by the ring, so nothing else changes. One thread serves one device in one direction: while a frozen filesystem
 * holds it, all other devices continue, and so do reads of the frozen one. It is a plain thread: it never holds the GIL, and Python knows nothing
 * of it.
 *
 * A slot goes from the loop to the submitter by its bit in `ready`. The loop sets the bits of a tick, and the submitter clears those that it
 * takes. To withdraw a request the loop clears its bit: the thread that clears it has the slot, so there is no lock and no list of stale entries.
 * The bits have no order, so each slot has a number, and the submitter takes the oldest first.
 *
 * When io_submit returns n, the first n requests belong to the kernel. Their completions may have been taken already and their slots filled
 * anew, so the submitter does not touch them again. Of a request that the kernel refuses, the submitter stores the error, and sets the bit
 * in `refused`. Requests that the kernel has no room for get their bits in `ready` back, so the loop may still withdraw them.
 *
 * What the atomics order:
 * - `ready` (set with release by the side that gives a slot, cleared with acquire by the side that takes it): the iocb is filled before the
 *   kernel reads it, and the submitter has done with a slot before the loop fills it again;
 * - `refused` (release, acquire): the submitter stored the error before the loop reads it;
 * - `ready` and `asleep` (sequentially consistent): the loop sets bits and then loads `asleep`, the submitter sets `asleep` and then loads
 *   the bits. So either the loop sees it asleep and wakes it, or it sees the bits;
 * - `wanted` (sequentially consistent): the loop sets it and then calls io_cancel, the submitter calls io_submit and then clears it. So
 *   either io_cancel finds the request, or the submitter signals the loop, which tries again;
 * - `calls` (release before io_submit, acquire when the loop has an event): the submitter has read an iocb before the loop fills it again.
 *   The kernel orders this too, in between, but the language does not know of it;
 * - `left` (release, acquire): the thread has submitted its last request before the loop sees it. It still signals the eventfd;
 *   taio_submitter_free joins it before it frees this struct;
 * - the others are hints and counters (relaxed), which order nothing. */
#include "ring.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    BATCH = 16,      /* the most requests in one io_submit: the device starts when the kernel has seen all of them (blk_start_plug) */
    CANDIDATES = 256, /* the most requests among which the oldest are chosen */
    STACK = 128 << 10, /* bytes: it calls little */
    LONG = 100000,   /* nanoseconds: a call that takes longer for each request may have waited for something */
    FIRST_PAUSE = 1000000, LAST_PAUSE = 64000000 /* nanoseconds between two attempts when the kernel has no room */
};

/* Made and freed by the loop. */
struct taio_submitter {
    /* Not changed after taio_submitter_new, and `next` by the loop only. */
    uint64_t context;
    struct kernel_ring *mapped; /* NULL: not mapped */
    struct iocb *iocbs;
    int event_fd, probing;
    unsigned slots, words; /* words: of 64 bits, for each slot one */
    struct taio_submitter *next;
    struct taio_ring *ring;

    /* The loop's. */
    uint64_t *gathered; /* bits of the slots that will be handed over */
    uint64_t number;    /* of the next slot that is gathered */
    int started;        /* 1: the thread runs, or has left */
    pthread_t thread;

    /* Shared. */
    _Atomic uint64_t *ready, *refused; /* bits */
    _Atomic uint64_t *numbers;         /* of each slot: written before its bit in `ready` is set */
    int *errors;                       /* of each slot: written before its bit in `refused` is set */
    _Atomic int has_refused;
    _Atomic uint32_t asleep; /* the futex; 1: the thread sleeps, or will look once more before it does */
    _Atomic int starved;     /* 1: it waits for room in the kernel's ring */
    _Atomic int wanted;      /* 1: the loop wants to hear when the requests that were taken are submitted */
    _Atomic int stopping, left;
    _Atomic int slow;        /* calls in a row that performed all their requests before they returned */
    _Atomic int fast;        /* a call returned before all its requests were complete, and the loop does not know yet */
    _Atomic int place;       /* enum taio_place */
    _Atomic uint64_t calls;
    _Atomic int was_long;    /* a call took LONG for each request, and the loop does not know yet */
};

static uint64_t bit_of(unsigned slot)
{
    return UINT64_C(1) << slot % 64;
}

struct taio_submitter *taio_submitter_new(struct taio_ring *ring, int probing)
{
    struct taio_submitter *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->context = ring->context;
    s->mapped = ring->mapped;
    s->iocbs = ring->iocbs;
    s->event_fd = ring->event_fd;
    s->probing = probing;
    s->slots = ring->slots;
    s->words = (ring->slots + 63) / 64;
    s->ring = ring;
    s->gathered = calloc(s->words, sizeof *s->gathered);
    s->ready = calloc(s->words, sizeof *s->ready);
    s->refused = calloc(s->words, sizeof *s->refused);
    s->numbers = calloc(s->slots, sizeof *s->numbers);
    s->errors = calloc(s->slots, sizeof *s->errors);
    s->next = ring->submitters;
    ring->submitters = s;
    if (s->gathered == NULL || s->ready == NULL || s->refused == NULL || s->numbers == NULL || s->errors == NULL) {
        taio_submitter_free(s);
        return NULL;
    }
    return s;
}

void taio_submitter_free(struct taio_submitter *s)
{
    struct taio_submitter **link = &s->ring->submitters;
    if (s->started)
        pthread_join(s->thread, NULL);
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
    free(s->gathered);
    free(s->ready);
    free(s->refused);
    free(s->numbers);
    free(s->errors);
    free(s);
}

struct taio_submitter *taio_submitter_next(struct taio_submitter *s)
{
    return s->next;
}

static void submitter_signal(struct taio_submitter *s)
{
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(s->event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

/* ---- the loop's side */

static void submitter_wake(struct taio_submitter *s)
{
    if (atomic_load(&s->asleep) && atomic_exchange(&s->asleep, 0))
        syscall(SYS_futex, &s->asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void taio_submitter_gather(struct taio_submitter *s, unsigned slot)
{
    atomic_store_explicit(&s->numbers[slot], s->number++, memory_order_relaxed);
    s->gathered[slot / 64] |= bit_of(slot);
}

static void *submitter_run(void *argument);

/* Start the thread, with all signals blocked: Python handles them in the main thread. Returns 0 or -errno. */
static int submitter_start(struct taio_submitter *s)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    pthread_attr_t attributes;
    sigset_t all, before;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return -error;
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&s->thread, &attributes, submitter_run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    s->started = error == 0;
    return -error;
}

/* Hand over what is gathered. Returns 0; or -errno: no thread can be had. */
static int submitter_hand_over(struct taio_submitter *s)
{
    int any = 0, error;
    for (unsigned w = 0; w < s->words; w++)
        any |= s->gathered[w] != 0;
    if (any && !s->started && (error = submitter_start(s)) < 0)
        return error;
    for (unsigned w = 0; any && w < s->words; w++)
        if (s->gathered[w] != 0) {
            atomic_fetch_or(&s->ready[w], s->gathered[w]);
            s->gathered[w] = 0;
        }
    if (any)
        submitter_wake(s);
    return 0;
}

int taio_submitter_hand_over(struct taio_submitter *s, int limit)
{
    int error = submitter_hand_over(s);
    if (error < 0)
        return error;
    int slow = atomic_load_explicit(&s->slow, memory_order_relaxed) >= limit;
    if (slow) /* the next one decides */
        atomic_store_explicit(&s->slow, limit - 1, memory_order_relaxed);
    int was_long = atomic_load_explicit(&s->was_long, memory_order_relaxed);
    if (was_long)
        atomic_store_explicit(&s->was_long, 0, memory_order_relaxed);
    int fast = atomic_load_explicit(&s->fast, memory_order_relaxed);
    if (fast)
        atomic_store_explicit(&s->fast, 0, memory_order_relaxed);
    return atomic_load_explicit(&s->place, memory_order_relaxed) | (slow ? TAIO_SLOW : 0) | (fast ? TAIO_FAST : 0) |
           (was_long ? TAIO_LONG : 0) | (s->started ? TAIO_RUNS : 0);
}

void taio_submitter_hand_over_pieces(struct taio_submitter *s)
{
    if (s->started) /* otherwise the loop hands over at the end of the tick, and sees whether a thread can be had */
        submitter_hand_over(s);
}

int taio_submitter_has(struct taio_submitter *s, unsigned slot)
{
    return ((s->gathered[slot / 64] | atomic_load_explicit(&s->ready[slot / 64], memory_order_relaxed)) & bit_of(slot)) != 0;
}

int taio_submitter_withdraw(struct taio_submitter *s, unsigned slot)
{
    uint64_t bit = bit_of(slot);
    if (s->gathered[slot / 64] & bit) {
        s->gathered[slot / 64] &= ~bit;
        return 1;
    }
    return (atomic_fetch_and_explicit(&s->ready[slot / 64], ~bit, memory_order_acquire) & bit) != 0;
}

int taio_submitter_take_refused(struct taio_submitter *s, unsigned *slot, int *error)
{
    if (!atomic_load_explicit(&s->has_refused, memory_order_relaxed))
        return 0;
    for (unsigned w = 0; w < s->words; w++) {
        uint64_t bits = atomic_load_explicit(&s->refused[w], memory_order_relaxed);
        if (bits == 0)
            continue;
        uint64_t bit = bits & -bits;
        atomic_fetch_and_explicit(&s->refused[w], ~bit, memory_order_acquire);
        *slot = w * 64 + (unsigned)__builtin_ctzll(bit);
        *error = s->errors[*slot];
        return 1;
    }
    /* The submitter sets a bit, then the hint, then signals. So a hint that is cleared here too late is followed by a signal, and by a look. */
    atomic_store(&s->has_refused, 0);
    for (unsigned w = 0; w < s->words; w++)
        if (atomic_load(&s->refused[w]) != 0)
            atomic_store(&s->has_refused, 1);
    return 0;
}

void taio_submitter_note_event(struct taio_submitter *s)
{
    (void)atomic_load_explicit(&s->calls, memory_order_acquire);
}

void taio_submitter_note_room(struct taio_submitter *s)
{
    if (atomic_load_explicit(&s->starved, memory_order_relaxed))
        submitter_wake(s);
}

void taio_submitter_want(struct taio_submitter *s)
{
    atomic_store(&s->wanted, 1);
}

uint64_t taio_submitter_calls(struct taio_submitter *s)
{
    return atomic_load_explicit(&s->calls, memory_order_relaxed);
}

void taio_submitter_stop(struct taio_submitter *s)
{
    atomic_store(&s->stopping, 1);
    submitter_wake(s);
}

int taio_submitter_has_left(struct taio_submitter *s)
{
    return !s->started || atomic_load_explicit(&s->left, memory_order_acquire);
}

/* ---- the thread's side */

static int submitter_has_ready(struct taio_submitter *s)
{
    for (unsigned w = 0; w < s->words; w++)
        if (atomic_load(&s->ready[w]) != 0)
            return 1;
    return 0;
}

/* Sleep until the loop hands something over, or has taken events, or `nanoseconds` have passed (0: no limit). `look`: not if there is
 * something to do already. */
static void submitter_sleep(struct taio_submitter *s, long nanoseconds, int look)
{
    struct timespec limit = {0, nanoseconds};
    atomic_store(&s->asleep, 1);
    if (!(look && submitter_has_ready(s)) && !atomic_load(&s->stopping))
        syscall(SYS_futex, &s->asleep, FUTEX_WAIT_PRIVATE, 1, nanoseconds ? &limit : NULL, NULL, 0);
    atomic_store(&s->asleep, 0);
}

/* Choose up to BATCH slots that are ready, the oldest first, and clear their bits. Returns how many are ours. */
static unsigned submitter_take(struct taio_submitter *s, struct iocb **batch)
{
    struct { uint64_t number; unsigned slot; } found[CANDIDATES];
    unsigned count = 0, taken = 0;
    for (unsigned w = 0; w < s->words && count < CANDIDATES; w++) {
        uint64_t bits = atomic_load_explicit(&s->ready[w], memory_order_relaxed);
        for (; bits != 0 && count < CANDIDATES; bits &= bits - 1) {
            unsigned slot = w * 64 + (unsigned)__builtin_ctzll(bits), i = count++;
            uint64_t number = atomic_load_explicit(&s->numbers[slot], memory_order_relaxed);
            for (; i > 0 && found[i - 1].number > number; i--)
                found[i] = found[i - 1];
            found[i].number = number;
            found[i].slot = slot;
        }
    }
    for (unsigned i = 0; i < count && taken < BATCH; i++) {
        unsigned slot = found[i].slot;
        uint64_t bit = bit_of(slot);
        if (atomic_fetch_and_explicit(&s->ready[slot / 64], ~bit, memory_order_acquire) & bit)
            batch[taken++] = &s->iocbs[slot];
    }
    return taken;
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static unsigned ring_tail(const struct taio_submitter *s)
{
    return s->mapped == NULL ? 0 : __atomic_load_n(&s->mapped->tail, __ATOMIC_ACQUIRE);
}

/* Return whether all of a call's requests were complete when it returned. `tail`: where the ring's tail was before the call. The loop may take
 * the events meanwhile, and the kernel may store others over them: then this misses some, which does no harm. */
static int submitter_has_completed_all(const struct taio_submitter *s, const uint64_t *tokens, unsigned count, unsigned tail)
{
    unsigned end = ring_tail(s), complete = 0;
    if (s->mapped == NULL)
        return 0;
    for (; tail != end; tail = tail + 1 == s->mapped->nr ? 0 : tail + 1)
        for (unsigned i = 0; i < count; i++)
            complete += s->mapped->events[tail].data == tokens[i];
    return complete >= count;
}

/* Call io_submit once, and learn from how long it took. Returns its result. */
static long submitter_call(struct taio_submitter *s, struct iocb **batch, unsigned count)
{
    uint64_t tokens[BATCH];
    unsigned tail = ring_tail(s);
    int blind = !(batch[0]->aio_rw_flags & RWF_NOWAIT); /* now, as the tokens: what is submitted, the loop may fill again */
    int writing = taio_is_write(batch[0]); /* so are all of a submitter */
    for (unsigned i = 0; i < count; i++)
        tokens[i] = batch[i]->aio_data;
    int64_t before = now();
    atomic_fetch_add_explicit(&s->calls, 1, memory_order_release);
    long n = taio_io_submit(s->context, count, batch);
    int64_t spent = now() - before;
    if (n <= 0)
        return n;
    if (writing)
        taio_note_change();
    if (spent > LONG * (int64_t)n)
        atomic_store_explicit(&s->was_long, 1, memory_order_relaxed);
    if (!blind) /* otherwise EAGAIN tells */
        return n;
    if (submitter_has_completed_all(s, tokens, (unsigned)n, tail))
        atomic_fetch_add_explicit(&s->slow, 1, memory_order_relaxed);
    else {
        atomic_store_explicit(&s->slow, 0, memory_order_relaxed);
        atomic_store_explicit(&s->fast, 1, memory_order_relaxed);
    }
    return n;
}

static void submitter_refuse(struct taio_submitter *s, const struct iocb *iocb, int error)
{
    unsigned slot = (unsigned)(iocb - s->iocbs);
    s->errors[slot] = error;
    atomic_fetch_or(&s->refused[slot / 64], bit_of(slot));
    atomic_store(&s->has_refused, 1);
    submitter_signal(s);
}

/* Submit a batch. Returns 0, or -EAGAIN if the kernel has no room: what is left is ready again, or refused if `last`. */
static int submitter_submit(struct taio_submitter *s, struct iocb **batch, unsigned count, int last)
{
    unsigned next = 0;
    long n = 0;
    if (s->probing && atomic_load_explicit(&s->place, memory_order_relaxed) == TAIO_UNKNOWN)
        atomic_store_explicit(&s->place, taio_place_of((int)batch[0]->aio_fildes), memory_order_relaxed);
    while (next < count) {
        n = submitter_call(s, batch + next, count - next);
        if (n > 0)
            next += (unsigned)n; /* fewer than all: the kernel refuses the next one, and returns its errno when it comes first */
        else if ((n == -EAGAIN || n == 0) && !last)
            break;
        else
            submitter_refuse(s, batch[next++], n == 0 ? -EAGAIN : (int)n);
    }
    for (unsigned i = next; i < count; i++) {
        unsigned slot = (unsigned)(batch[i] - s->iocbs);
        atomic_fetch_or(&s->ready[slot / 64], bit_of(slot));
    }
    if (atomic_exchange(&s->wanted, 0))
        submitter_signal(s);
    return next < count || n == -EAGAIN ? -EAGAIN : 0;
}

static void *submitter_run(void *argument)
{
    struct taio_submitter *s = argument;
    struct iocb *batch[BATCH];
    long pause = FIRST_PAUSE;
    pthread_setname_np(pthread_self(), "trio_aio submit");
    for (;;) {
        unsigned count = submitter_take(s, batch);
        if (count == 0) {
            if (atomic_load(&s->stopping))
                break;
            submitter_sleep(s, 0, 1);
        } else if (submitter_submit(s, batch, count, pause == LAST_PAUSE) == 0) {
            pause = FIRST_PAUSE;
        } else { /* the ring is full until the loop takes events; or the kernel has no memory, and no event will tell when it has. In the
                  * end the workers get them: polls may hold all the room, for ever */
            atomic_store(&s->starved, 1);
            submitter_sleep(s, pause, 0);
            atomic_store(&s->starved, 0);
            pause = pause < LAST_PAUSE ? 2 * pause : LAST_PAUSE;
        }
    }
    atomic_store_explicit(&s->left, 1, memory_order_release);
    submitter_signal(s); /* the loop closes the eventfd only when it has joined this thread */
    return NULL;
}
