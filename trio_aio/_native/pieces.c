/* Runs: many pieces of one file, handed over in one call. A lane takes the pieces in order and leaves in each how it ended; what it
 * could not do without sleeping stays open for the next lane. */
#include "native.h"

#include <string.h>

int taio_pieces_blocks(struct taio_pieces *run, const int64_t *offsets, uint64_t length, uint64_t memory, uint64_t *bad)
{
    for (uint64_t i = 0; i < run->count; i++) {
        if (offsets[i] < 0) {
            *bad = i;
            return -EINVAL;
        }
        run->bits |= (uint64_t)offsets[i] | length;
        run->memory_bits |= memory + i * length;
        run->pieces[i] = (struct taio_piece){offsets[i], memory + i * length, length, TAIO_UNTRIED};
    }
    return 0;
}

int taio_piece_is_open(const struct taio_pieces *run, const struct taio_piece *piece)
{
    if (piece->result >= 0)
        return (uint64_t)piece->result < piece->length;
    if (piece->result == -EIO)
        return !run->writing; /* transfer.c, call */
    return piece->result == TAIO_UNTRIED || piece->result == -EAGAIN || piece->result == -EOPNOTSUPP || piece->result == -EINTR;
}

uint64_t taio_pieces_first_open(const struct taio_pieces *run)
{
    uint64_t i = 0;
    while (i < run->count && run->pieces[i].result == (int64_t)run->pieces[i].length)
        i++;
    return i;
}

void taio_pieces_fail(struct taio_pieces *run, struct taio_piece *piece, int64_t moved)
{
    if (run->failed == NULL) {
        run->failed = piece;
        run->partial = moved > 0 ? (uint64_t)moved : 0;
    }
    __atomic_store_n(&run->stop, 1, __ATOMIC_RELAXED);
}

uint64_t taio_pieces_moved(const struct taio_pieces *run)
{
    uint64_t moved = run->partial;
    for (uint64_t i = 0; i < run->count; i++)
        moved += run->pieces[i].result > 0 ? (uint64_t)run->pieces[i].result : 0;
    return moved;
}

int taio_pieces_inline(struct taio_pieces *run, uint64_t limit)
{
    uint64_t moved = 0;
    for (; run->next < run->count; run->next++) {
        struct taio_piece *piece = &run->pieces[run->next];
        uint64_t done = 0;
        if (piece->length > limit)
            return -EAGAIN; /* too much for one turn of the loop */
        if (moved >= limit)
            return 1;
        while (done < piece->length) { /* a short count tells nothing by itself: 0 behind it is the end of the file */
            int64_t n = taio_pread_nowait(run->fd, (char *)(uintptr_t)piece->memory + done, piece->length - done, piece->offset + (int64_t)done);
            if (n < 0)
                return (int)n;
            if (n == 0)
                break;
            done += (uint64_t)n;
        }
        piece->result = (int64_t)done;
        if (done < piece->length)
            return -ENODATA;
        moved += done + 512; /* an empty or tiny piece costs a call too */
    }
    return 0;
}
