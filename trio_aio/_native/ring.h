/* What ring.c and submitter.c share: the kernel's ring as it is mapped, and ours. */
#ifndef TRIO_AIO_RING_H
#define TRIO_AIO_RING_H

#include "native.h"

/* fs/aio.c, struct aio_ring. The kernel owns all but `head`, which is the loop's. */
struct kernel_ring {
    unsigned id, nr;
    unsigned head, tail;
    unsigned magic, compat_features, incompat_features, header_length;
    struct io_event events[];
};

/* The cost of io_submit, as averages over the last calls: n requests took t nanoseconds; nn and nt are the averages of n*n and n*t. */
struct cost {
    double n, t, nn, nt;
    unsigned calls; /* in the averages, at most COST_CALLS */
};

/* A slot's part in a many-piece request. */
struct pieces_slot {
    struct taio_pieces *pieces; /* NULL: the slot is free or has an ordinary request */
    struct taio_piece *piece;   /* the piece that is prepared or in flight */
    unsigned place;             /* index of the slot's part of the slab */
};

struct taio_ring {
    uint64_t context;
    struct kernel_ring *mapped; /* NULL: use io_getevents */
    int event_fd;
    unsigned slots, prepared;
    unsigned together; /* the most requests in one io_submit */
    uint64_t calls;    /* of io_submit, by the loop */
    unsigned watched;  /* so many of the next calls are watched for sleep */
    int slept;         /* 1: a call of the loop slept, and Python was not told yet */
    struct cost cost;
    struct taio_submitter *submitters; /* a list */
    struct iocb **waiting; /* the first `prepared` ones wait for io_submit, in this order */
    struct pieces_slot *pieces_slots; /* one for each slot */
    struct taio_submitter **owners;   /* of each slot: the submitter of its request; NULL: the loop submits it */
    uint64_t *left; /* of each slot: what taio_read_begins returned; 0 unless a submitter has it */
    unsigned char *held; /* of each slot: 1 from the filling of its iocb until its completion was returned. The loop's */
    struct iocb iocbs[]; /* one for each slot; the kernel copies it in io_submit, and knows the request by its address */
};

static inline int taio_is_write(const struct iocb *iocb)
{
    return iocb->aio_lio_opcode == IOCB_CMD_PWRITE || iocb->aio_lio_opcode == IOCB_CMD_PWRITEV;
}

/* Add a slot, whose iocb is filled, to what the next taio_submitter_hand_over hands over. */
void taio_submitter_gather(struct taio_submitter *submitter, unsigned slot);
/* Return whether a slot could be withdrawn just now. */
int taio_submitter_has(struct taio_submitter *submitter, unsigned slot);
/* Withdraw a slot that io_submit has not been called for. Returns 1 if it will not be; its slot is free. */
int taio_submitter_withdraw(struct taio_submitter *submitter, unsigned slot);
/* Take the next slot that io_submit refused. Returns 0 if there is none; otherwise 1. */
int taio_submitter_take_refused(struct taio_submitter *submitter, unsigned *slot, int *error);
/* Have the eventfd signalled when what the thread has taken now is submitted. */
void taio_submitter_want(struct taio_submitter *submitter);
/* Order what follows behind the io_submit of a slot whose event was taken. */
void taio_submitter_note_event(struct taio_submitter *submitter);
/* Tell a submitter that events were taken: the kernel's ring has room again. */
void taio_submitter_note_room(struct taio_submitter *submitter);
/* Return the next of the ring's submitters. */
struct taio_submitter *taio_submitter_next(struct taio_submitter *submitter);

#endif
