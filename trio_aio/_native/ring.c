/* The kernel lane: iocbs in, events out.
 *
 * How the kernel works. It maps the completion ring of a context into the process; the context's id is the ring's address. The kernel writes
 * an event and moves `tail`; the reader moves `head`. io_cancel identifies a request by the address of its iocb.
 *
 * What we do about it. We read the ring ourselves, which costs a nanosecond where io_getevents costs hundreds. Each slot has one iocb that
 * never moves. A slot may also carry a many-piece request: whenever one piece completes, the next is prepared in the same slot.
 *
 * Requests whose io_submit may sleep are handed to a submitter (submitter.c). All else belongs to one thread, the event loop's, so there is
 * no lock. Only the kernel's ring is shared, with the kernel, and it allows one reader. Two atomics order it:
 * - `tail` is loaded with acquire: the kernel wrote the events before it in full;
 * - `head` is stored with release: we have read the events before it, and the kernel may overwrite them. */
#include "ring.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AIO_RING_MAGIC 0xa10a10a1u
#define COST_CALLS 64 /* calls of io_submit that the averages cover */
#define FIRST_CALLS 100 /* calls of io_submit that are watched for sleep, and then one in WATCHED_EACH */
#define WATCHED_EACH 16
#define LONG 200000.0 /* nanoseconds: after a call that took longer, the next CALLS_BEHIND are watched */
#define CALLS_BEHIND 32
#define SLEEP 50000.0 /* nanoseconds: a shorter sleep in a call does no harm */

/* Return whether the context's id is the address of a ring that we can read. A system that only imitates Linux may have none there, and a
 * plain read of such an id would be a segmentation fault. So let the kernel read it: then the answer is EFAULT. */
static int ring_is_there(uint64_t context)
{
    struct kernel_ring head;
    struct iovec to = {&head, sizeof head}, from = {(void *)(uintptr_t)context, sizeof head};
    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != (ssize_t)sizeof head)
        return 0;
    return head.magic == AIO_RING_MAGIC && head.incompat_features == 0 && head.header_length == sizeof head;
}

struct taio_ring *taio_ring_new(uint64_t context, unsigned slots, int event_fd)
{
    struct taio_ring *ring = calloc(1, sizeof *ring + slots * sizeof(struct iocb));
    if (ring == NULL)
        return NULL;
    ring->waiting = calloc(slots, sizeof *ring->waiting);
    ring->pieces_slots = calloc(slots, sizeof *ring->pieces_slots);
    ring->owners = calloc(slots, sizeof *ring->owners);
    ring->held = calloc(slots, sizeof *ring->held);
    ring->left = calloc(slots, sizeof *ring->left);
    if (ring->waiting == NULL || ring->pieces_slots == NULL || ring->owners == NULL || ring->held == NULL || ring->left == NULL) {
        taio_ring_free(ring);
        return NULL;
    }
    ring->context = context;
    ring->event_fd = event_fd;
    ring->slots = slots;
    ring->together = TAIO_TOGETHER;
    ring->watched = FIRST_CALLS;
    if (ring_is_there(context))
        ring->mapped = (struct kernel_ring *)(uintptr_t)context;
    return ring;
}

void taio_ring_free(struct taio_ring *ring)
{
    free(ring->waiting);
    free(ring->pieces_slots);
    free(ring->owners);
    free(ring->held);
    free(ring->left);
    free(ring);
}

int taio_ring_is_mapped(struct taio_ring *ring)
{
    return ring->mapped != NULL;
}

void taio_ring_use_getevents(struct taio_ring *ring)
{
    ring->mapped = NULL;
}

static void ring_fill(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory, uint64_t length,
                      int64_t offset, int rw_flags)
{
    struct iocb *iocb = &ring->iocbs[slot];
    memset(iocb, 0, sizeof *iocb);
    iocb->aio_data = token;
    iocb->aio_lio_opcode = (uint16_t)opcode;
    iocb->aio_fildes = (uint32_t)fd;
    iocb->aio_buf = memory;
    iocb->aio_nbytes = length;
    iocb->aio_offset = offset;
    iocb->aio_rw_flags = rw_flags;
    iocb->aio_flags = IOCB_FLAG_RESFD;
    iocb->aio_resfd = (uint32_t)ring->event_fd;
    ring->held[slot] = 1;
}

void taio_ring_prepare(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory, uint64_t length,
                       int64_t offset, int rw_flags)
{
    ring_fill(ring, slot, token, opcode, fd, memory, length, offset, rw_flags);
    ring->owners[slot] = NULL;
    ring->left[slot] = 0;
    ring->waiting[ring->prepared++] = &ring->iocbs[slot];
}

void taio_ring_gather(struct taio_ring *ring, struct taio_submitter *submitter, unsigned slot, uint64_t token, int opcode, int fd,
                      uint64_t memory, uint64_t length, int64_t offset, int rw_flags)
{
    ring_fill(ring, slot, token, opcode, fd, memory, length, offset, rw_flags);
    ring->owners[slot] = submitter;
    ring->left[slot] = opcode == IOCB_CMD_PREAD || opcode == IOCB_CMD_PREADV ? taio_read_begins(taio_use_of(fd)) : 0;
    taio_submitter_gather(submitter, slot);
}

/* Prepare the next piece that is to be tried, in this slot. Returns 0 if there is none. */
static int ring_prepare_next_piece(struct taio_ring *ring, unsigned slot, uint64_t token)
{
    struct pieces_slot *s = &ring->pieces_slots[slot];
    struct taio_pieces *pieces = s->pieces;
    while (pieces->next < pieces->count && !taio_pieces_can_retry(pieces, &pieces->pieces[pieces->next]))
        pieces->next++;
    if (pieces->next == pieces->count || pieces->stop)
        return 0;
    struct taio_piece *piece = s->piece = &pieces->pieces[pieces->next++];
    uint64_t memory = piece->memory, length = piece->length;
    int64_t offset = piece->offset;
    if (pieces->slab_address != 0) {
        uint64_t before = (uint64_t)piece->offset % pieces->unit;
        memory = pieces->slab_address + s->place * pieces->stride;
        offset -= (int64_t)before;
        length = (before + piece->length + pieces->unit - 1) / pieces->unit * pieces->unit;
        if (pieces->writing)
            memcpy((void *)(uintptr_t)memory, (void *)(uintptr_t)piece->memory, piece->length);
    }
    int opcode = pieces->writing ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    if (pieces->submitter != NULL)
        taio_ring_gather(ring, pieces->submitter, slot, token, opcode, pieces->fd, memory, length, offset, pieces->flags);
    else
        taio_ring_prepare(ring, slot, token, opcode, pieces->fd, memory, length, offset, pieces->flags);
    return 1;
}

int taio_ring_prepare_pieces(struct taio_ring *ring, unsigned slot, uint64_t token, struct taio_pieces *pieces, unsigned place)
{
    ring->pieces_slots[slot] = (struct pieces_slot){pieces, NULL, place};
    if (!ring_prepare_next_piece(ring, slot, token)) {
        ring->pieces_slots[slot].pieces = NULL;
        return 0;
    }
    pieces->out++;
    return 1;
}

/* Record how a piece ended and prepare the next one in the same slot. Returns 0 if the slot is free instead. */
static int ring_continue_pieces(struct taio_ring *ring, unsigned slot, uint64_t token, int64_t result)
{
    struct pieces_slot *s = &ring->pieces_slots[slot];
    struct taio_pieces *pieces = s->pieces;
    struct taio_piece *piece = s->piece;
    if (result > 0 && pieces->slab_address != 0) {
        int64_t before = piece->offset % (int64_t)pieces->unit;
        result = result > before ? result - before : 0;
        if (result > (int64_t)piece->length)
            result = (int64_t)piece->length;
        if (!pieces->writing)
            memcpy((void *)(uintptr_t)piece->memory, (char *)(uintptr_t)(pieces->slab_address + s->place * pieces->stride) + before, (size_t)result);
    }
    piece->result = result;
    if (!taio_pieces_can_retry(pieces, piece) && result != (int64_t)piece->length)
        taio_pieces_fail(pieces, piece, 0);
    if (pieces->out <= pieces->width && ring_prepare_next_piece(ring, slot, token))
        return 1;
    s->pieces = NULL;
    pieces->out--;
    ring->held[slot] = 0;
    return 0;
}

/* Remove `count` waiting iocbs from index `first` on. */
static void ring_drop_waiting(struct taio_ring *ring, unsigned first, unsigned count)
{
    ring->prepared -= count;
    memmove(ring->waiting + first, ring->waiting + first + count, (ring->prepared - first) * sizeof *ring->waiting);
}

/* Return the index of a slot's iocb among those that wait, or `prepared`. */
static unsigned ring_find_waiting(struct taio_ring *ring, unsigned slot)
{
    unsigned i = 0;
    while (i < ring->prepared && ring->waiting[i] != &ring->iocbs[slot])
        i++;
    return i;
}

int taio_ring_is_prepared(struct taio_ring *ring, unsigned slot)
{
    if (ring->owners[slot] != NULL)
        return taio_submitter_has(ring->owners[slot], slot);
    return ring_find_waiting(ring, slot) < ring->prepared;
}

int taio_ring_holds(struct taio_ring *ring, unsigned slot)
{
    return ring->held[slot];
}

int taio_ring_withdraw(struct taio_ring *ring, unsigned slot)
{
    if (ring->owners[slot] != NULL) {
        if (!taio_submitter_withdraw(ring->owners[slot], slot))
            return 0;
    } else {
        unsigned i = ring_find_waiting(ring, slot);
        if (i == ring->prepared)
            return 0;
        ring_drop_waiting(ring, i, 1);
    }
    ring->held[slot] = 0;
    if (ring->pieces_slots[slot].pieces != NULL) {
        ring->pieces_slots[slot].pieces->out--;
        ring->pieces_slots[slot].pieces = NULL;
    }
    return 1;
}

unsigned taio_ring_prepared(struct taio_ring *ring)
{
    return ring->prepared;
}

uint64_t taio_ring_calls(struct taio_ring *ring)
{
    uint64_t calls = ring->calls;
    for (struct taio_submitter *s = ring->submitters; s != NULL; s = taio_submitter_next(s))
        calls += taio_submitter_calls(s);
    return calls;
}

/* Add a call of n requests that took t nanoseconds. The first COST_CALLS calls count equally. If each call had the final weight from the
 * start, the averages would start at zero requests in zero time, and a line through that point has no fixed part. */
static void cost_note(struct cost *cost, double n, double t)
{
    if (cost->calls < COST_CALLS)
        cost->calls++;
    const double weight = 1.0 / cost->calls;
    double most = 8 * cost->t * (n > cost->n ? n / cost->n : 1);
    if (cost->calls > 1 && t > most)
        t = most; /* the thread was preempted, which says nothing about io_submit */
    cost->n += weight * (n - cost->n);
    cost->t += weight * (t - cost->t);
    cost->nn += weight * (n * n - cost->nn);
    cost->nt += weight * (n * t - cost->nt);
}

double taio_ring_fixed_cost(const struct taio_ring *ring)
{
    const struct cost *cost = &ring->cost;
    double variance = cost->nn - cost->n * cost->n;
    if (cost->n <= 0 || variance < 0.05 * cost->nn)
        return -1;
    double each = (cost->nt - cost->n * cost->t) / variance, fixed = cost->t - each * cost->n;
    return each <= 0 ? ring->slots : fixed <= 0 ? 0 : fixed / each;
}

/* Note that a call slept, for Python, and in the many-piece requests that it was for: they start no more pieces here. */
static void ring_note_sleep(struct taio_ring *ring, unsigned first, unsigned count)
{
    ring->slept = 1;
    for (unsigned i = first; i < first + count; i++) {
        struct taio_pieces *pieces = ring->pieces_slots[ring->waiting[i] - ring->iocbs].pieces;
        if (pieces != NULL) {
            pieces->slept = 1;
            pieces->width = 0;
        }
    }
}

/* Submit the waiting requests from index `first` on, at most `together` of them. Returns io_submit's result.
 * The kernel starts the device only when it has seen all requests of one call (blk_start_plug), so a call takes only a few.
 * The call should not sleep. A look at ru_nvcsw takes 0.4 us, twice a call: so all of the first calls are watched, and all that follow a long
 * one, but few of the others. */
static long ring_submit_batch(struct taio_ring *ring, unsigned first)
{
    unsigned count = ring->prepared - first;
    struct timespec before, after;
    if (count > ring->together)
        count = ring->together;
    int watched = ring->watched > 0 || ring->calls % WATCHED_EACH == 0;
    long switches = watched ? taio_times_slept() : 0;
    ring->calls++;
    clock_gettime(CLOCK_MONOTONIC, &before);
    long n = taio_io_submit(ring->context, count, ring->waiting + first);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double spent = 1e9 * (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec);
    ring->watched -= ring->watched > 0;
    if (watched && spent > SLEEP && taio_times_slept() > switches)
        ring_note_sleep(ring, first, count);
    else if (!watched && spent > LONG)
        ring->watched = CALLS_BEHIND; /* it was preempted, or it slept: the next calls tell */
    if (n > 0 && ring->calls > 1) /* the first call is slow: its code and data are not in the CPU's caches yet */
        cost_note(&ring->cost, (double)n, spent);
    return n;
}

/* Return whether an event waits in the ring. Without a mapped ring: 1, since only io_getevents knows. */
static int ring_has_event(const struct taio_ring *ring)
{
    const struct kernel_ring *mapped = ring->mapped;
    return mapped == NULL || __atomic_load_n(&mapped->tail, __ATOMIC_ACQUIRE) != mapped->head;
}

int taio_ring_start(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory, uint64_t length,
                    int64_t offset, int rw_flags, int alone)
{
    taio_ring_prepare(ring, slot, token, opcode, fd, memory, length, offset, rw_flags);
    if (!alone || ring->prepared > 1)
        return TAIO_PREPARED;
    long n = ring_submit_batch(ring, 0);
    if (n == 0 || n == -EAGAIN)
        return TAIO_PREPARED; /* the kernel's ring is full */
    ring->prepared = 0;
    int slept = ring->slept;
    ring->slept = 0;
    ring->held[slot] = n > 0;
    return n < 0 ? (int)n : slept ? TAIO_SUBMITTED_SLEPT : ring_has_event(ring) ? TAIO_SUBMITTED_EVENT : TAIO_SUBMITTED;
}

int taio_ring_start_read(struct taio_ring *ring, unsigned slot, uint64_t token, int fd, uint64_t memory, uint64_t length, int64_t offset,
                         int alone)
{
    if (taio_sets_access_time(fd))
        return TAIO_SETS_TIME;
    return taio_ring_start(ring, slot, token, IOCB_CMD_PREAD, fd, memory, length, offset, RWF_NOWAIT, alone);
}

void taio_ring_set_together(struct taio_ring *ring, unsigned count)
{
    ring->together = count;
}

int taio_ring_submit(struct taio_ring *ring, struct taio_completion *out, int room)
{
    unsigned next = 0;
    int refused = 0;
    ring->slept = 0;
    while (next < ring->prepared && refused < room) {
        long n = ring_submit_batch(ring, next);
        if (n > 0) {
            next += (unsigned)n; /* fewer than all: the kernel refuses the next one, and returns its errno when it comes first */
            continue;
        }
        if (n == -EAGAIN || n == 0)
            break; /* the kernel's ring is full: the rest stay prepared */
        uint64_t token = ring->waiting[next++]->aio_data;
        unsigned slot = (unsigned)token;
        if (ring->pieces_slots[slot].pieces != NULL) {
            /* Nothing may be prepared while we walk the list, so the request gives up its slots as its pieces complete. */
            ring->pieces_slots[slot].pieces->width = 0;
            ring_continue_pieces(ring, slot, token, n);
        }
        ring->held[slot] = 0;
        out[refused++] = (struct taio_completion){token, n, 0};
    }
    ring_drop_waiting(ring, 0, next);
    int slept = ring->slept;
    ring->slept = 0;
    return slept ? refused | TAIO_RING_SLEPT : refused;
}

int taio_ring_cancel(struct taio_ring *ring, unsigned slot)
{
    struct io_event unused; /* the kernel never fills it in: the event comes through the ring */
    if (ring->owners[slot] != NULL)
        taio_submitter_want(ring->owners[slot]); /* first: see submitter.c */
    int error = taio_io_cancel(ring->context, &ring->iocbs[slot], &unused);
    return error == -EINPROGRESS ? 0 : error;
}

/* Note what a request that has moved bytes did to the times of its file. */
static void ring_note_times(struct taio_ring *ring, unsigned slot)
{
    const struct iocb *iocb = &ring->iocbs[slot];
    int fd = (int)iocb->aio_fildes;
    if (taio_is_write(iocb))
        taio_note_change(); /* the submitter may not have come to that */
    taio_read_has_ended(taio_use_of(fd), fd, ring->left[slot]);
}

/* Turn an event into a completion. Returns 0 if there is none, because a many-piece request continues in the slot; otherwise 1. */
static int ring_take_event(struct taio_ring *ring, struct taio_completion *out, const struct io_event *event)
{
    unsigned slot = (unsigned)event->data; /* the lower half of a token is the slot */
    if (ring->owners[slot] != NULL)
        taio_submitter_note_event(ring->owners[slot]);
    if (event->res > 0)
        ring_note_times(ring, slot);
    if (ring->pieces_slots[slot].pieces != NULL && ring_continue_pieces(ring, slot, event->data, event->res))
        return 0;
    ring->held[slot] = 0;
    out->token = event->data;
    out->result = event->res;
    out->transferred = event->res > 0 ? event->res : 0;
    return 1;
}

/* Submit the requests that wait from index `first` on: next pieces that reaping has prepared. Those that the kernel does not accept wait for
 * taio_ring_submit. Returns the index at which the next request will be prepared. */
static unsigned ring_submit_rest(struct taio_ring *ring, unsigned first)
{
    unsigned next = first;
    long n = 1;
    while (next < ring->prepared && n > 0) {
        n = ring_submit_batch(ring, next);
        next += n > 0 ? (unsigned)n : 0;
    }
    ring_drop_waiting(ring, first, next - first);
    for (struct taio_submitter *s = ring->submitters; s != NULL; s = taio_submitter_next(s))
        taio_submitter_hand_over_pieces(s);
    ring->slept = 0; /* only many-piece requests were submitted here, and they know */
    return ring->prepared;
}

/* Take the requests that submitters could not submit. Returns how many completions were written. */
static int ring_take_refused(struct taio_ring *ring, struct taio_completion *out, int room)
{
    int taken = 0, error;
    unsigned slot;
    for (struct taio_submitter *s = ring->submitters; s != NULL; s = taio_submitter_next(s))
        while (taken < room && taio_submitter_take_refused(s, &slot, &error)) {
            uint64_t token = ring->iocbs[slot].aio_data;
            if (ring->pieces_slots[slot].pieces != NULL) {
                ring->pieces_slots[slot].pieces->width = 0; /* it gives up its slots as its pieces complete */
                ring_continue_pieces(ring, slot, token, error);
            }
            ring->held[slot] = 0;
            out[taken++] = (struct taio_completion){token, error, 0};
        }
    return taken;
}

/* Tell the submitters that wait for room in the kernel's ring that there is some. */
static void ring_note_room(struct taio_ring *ring)
{
    for (struct taio_submitter *s = ring->submitters; s != NULL; s = taio_submitter_next(s))
        taio_submitter_note_room(s);
}

/* taio_ring_reap without a mapped ring. */
static int ring_reap_by_call(struct taio_ring *ring, struct taio_completion *out, int room)
{
    struct io_event events[64];
    struct timespec no_wait = {0, 0};
    int taken = ring_take_refused(ring, out, room);
    unsigned first = ring->prepared;
    while (taken < room) {
        int want = room - taken < 64 ? room - taken : 64;
        long n = taio_io_getevents(ring->context, 0, want, events, &no_wait);
        if (n <= 0)
            break;
        for (long i = 0; i < n; i++)
            taken += ring_take_event(ring, &out[taken], &events[i]);
        if (n < want)
            break;
    }
    ring_note_room(ring);
    ring_submit_rest(ring, first);
    return taken;
}

int taio_ring_reap(struct taio_ring *ring, struct taio_completion *out, int room)
{
    struct kernel_ring *mapped = ring->mapped;
    if (mapped == NULL)
        return ring_reap_by_call(ring, out, room);
    unsigned head = __atomic_load_n(&mapped->head, __ATOMIC_RELAXED);
    unsigned tail = __atomic_load_n(&mapped->tail, __ATOMIC_ACQUIRE); /* the events before it are complete */
    int taken = ring->submitters == NULL ? 0 : ring_take_refused(ring, out, room);
    unsigned before = head, first = ring->prepared;
    /* Stop at the tail as it was at the start. The pieces that we submit below may complete at once, on a synchronous device: then the ring
     * would never be empty. */
    while (head != tail && taken < room) {
        taken += ring_take_event(ring, &out[taken], &mapped->events[head]);
        head = head + 1 == mapped->nr ? 0 : head + 1;
        if (ring->prepared - first >= ring->together) {
            __atomic_store_n(&mapped->head, head, __ATOMIC_RELEASE); /* first make room for the events of what we submit */
            first = ring_submit_rest(ring, first);
        }
    }
    if (head != before) {
        __atomic_store_n(&mapped->head, head, __ATOMIC_RELEASE);
        ring_note_room(ring);
    }
    ring_submit_rest(ring, first);
    return taken;
}
