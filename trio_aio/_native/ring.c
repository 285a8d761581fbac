/* The kernel lane: iocbs in, events out.
 *
 * The kernel maps the completion ring of a context into the process, at the address that is the context's id. It moves `tail`, we move
 * `head`; reading it ourselves costs a nanosecond where io_getevents costs hundreds. A slot is one iocb that stays where it is while
 * the request is in flight, because io_cancel knows a request by its iocb's address.
 *
 * One thread, the event loop's, submits and reaps: the kernel's ring has room for one consumer. Hence no lock here. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

#define AIO_RING_MAGIC 0xa10a10a1u

struct kernel_ring { /* fs/aio.c, struct aio_ring */
    unsigned id, nr;
    unsigned head, tail;
    unsigned magic, compat_features, incompat_features, header_length;
    struct io_event events[];
};

struct taio_ring {
    uint64_t context;
    struct kernel_ring *mapped; /* NULL: ask io_getevents */
    int event_fd;
    unsigned slots, prepared;
    struct iocb **batch; /* the first `prepared` wait for io_submit, in order */
    struct iocb iocbs[];
};

struct taio_ring *taio_ring_new(uint64_t context, unsigned slots, int event_fd)
{
    struct kernel_ring *mapped = (struct kernel_ring *)(uintptr_t)context;
    struct taio_ring *ring = calloc(1, sizeof *ring + slots * sizeof(struct iocb));
    if (ring == NULL)
        return NULL;
    ring->batch = calloc(slots, sizeof *ring->batch);
    if (ring->batch == NULL) {
        free(ring);
        return NULL;
    }
    ring->context = context;
    ring->event_fd = event_fd;
    ring->slots = slots;
    if (mapped->magic == AIO_RING_MAGIC && mapped->incompat_features == 0 && mapped->header_length == sizeof *mapped)
        ring->mapped = mapped;
    return ring;
}

void taio_ring_free(struct taio_ring *ring)
{
    free(ring->batch);
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

void taio_ring_prepare(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory, uint64_t length,
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
    ring->batch[ring->prepared++] = iocb;
}

static void drop_from_batch(struct taio_ring *ring, unsigned first, unsigned count)
{
    ring->prepared -= count;
    memmove(ring->batch + first, ring->batch + first + count, (ring->prepared - first) * sizeof *ring->batch);
}

int taio_ring_withdraw(struct taio_ring *ring, unsigned slot)
{
    for (unsigned i = 0; i < ring->prepared; i++)
        if (ring->batch[i] == &ring->iocbs[slot]) {
            drop_from_batch(ring, i, 1);
            return 1;
        }
    return 0;
}

unsigned taio_ring_prepared(struct taio_ring *ring)
{
    return ring->prepared;
}

int taio_ring_submit(struct taio_ring *ring, struct taio_completion *out, int room, uint64_t *calls)
{
    unsigned next = 0;
    int refused = 0;
    while (next < ring->prepared && refused < room) {
        long n = taio_io_submit(ring->context, ring->prepared - next, ring->batch + next);
        ++*calls;
        if (n > 0) {
            next += (unsigned)n; /* short of all: the one it stopped at is bad, and says why when it comes first */
            continue;
        }
        if (n == -EAGAIN || n == 0)
            break; /* no room in the ring: stays prepared */
        out[refused++] = (struct taio_completion){ring->batch[next]->aio_data, n, 0};
        next++;
    }
    drop_from_batch(ring, 0, next);
    return refused;
}

int taio_ring_cancel(struct taio_ring *ring, unsigned slot)
{
    struct io_event unused; /* since 2.6 the event comes through the ring, never here */
    int error = taio_io_cancel(ring->context, &ring->iocbs[slot], &unused);
    return error == -EINPROGRESS ? 0 : error;
}

static void deliver(struct taio_completion *out, const struct io_event *event)
{
    out->token = event->data;
    out->result = event->res;
    out->transferred = event->res > 0 ? event->res : 0;
}

static int reap_by_call(struct taio_ring *ring, struct taio_completion *out, int room)
{
    struct io_event events[64];
    struct timespec at_once = {0, 0};
    int taken = 0;
    while (taken < room) {
        int want = room - taken < 64 ? room - taken : 64;
        long n = taio_io_getevents(ring->context, 0, want, events, &at_once);
        if (n <= 0)
            break;
        for (long i = 0; i < n; i++)
            deliver(&out[taken++], &events[i]);
        if (n < want)
            break;
    }
    return taken;
}

int taio_ring_reap(struct taio_ring *ring, struct taio_completion *out, int room)
{
    struct kernel_ring *mapped = ring->mapped;
    if (mapped == NULL)
        return reap_by_call(ring, out, room);
    unsigned head = __atomic_load_n(&mapped->head, __ATOMIC_RELAXED);
    unsigned tail = __atomic_load_n(&mapped->tail, __ATOMIC_ACQUIRE); /* the events before it are whole */
    int taken = 0;
    while (head != tail && taken < room) {
        deliver(&out[taken++], &mapped->events[head]);
        head = head + 1 == mapped->nr ? 0 : head + 1;
    }
    if (taken > 0)
        __atomic_store_n(&mapped->head, head, __ATOMIC_RELEASE); /* only now may the kernel write there again */
    return taken;
}
