/* Many-piece requests: many ranges of one file, read or written by one request.
 *
 * A lane takes the pieces in order and stores in each how it ended. A piece that a lane could not finish without sleeping is left to the
 * next lane, so a request may pass through all three: inline, kernel, workers. Which thread owns it, and when: native.h. */
#include "native.h"

#include <string.h>

int taio_pieces_blocks(struct taio_pieces *pieces, const int64_t *offsets, uint64_t length, uint64_t memory, uint64_t *bad)
{
    for (uint64_t i = 0; i < pieces->count; i++) {
        if (offsets[i] < 0) {
            *bad = i;
            return -EINVAL;
        }
        pieces->bits |= (uint64_t)offsets[i] | length;
        pieces->memory_bits |= memory + i * length;
        pieces->pieces[i] = (struct taio_piece){offsets[i], memory + i * length, length, TAIO_UNTRIED};
    }
    return 0;
}

int taio_pieces_can_retry(const struct taio_pieces *pieces, const struct taio_piece *piece)
{
    if (piece->result >= 0)
        return (uint64_t)piece->result < piece->length;
    if (piece->result == -EIO)
        return !pieces->writing; /* a worker reads again without O_DIRECT: transfer.c, transfer_or_retry */
    if (piece->result == -EINVAL && pieces->writing) /* a worker writes what is below the limit, and finds EFBIG */
        return taio_crosses_size_limit(piece->offset, piece->length);
    if (piece->result == -EINVAL) /* its blocks may end above the largest offset: a worker reads what is below */
        return pieces->unit > 1 && piece->offset > INT64_MAX - (int64_t)pieces->unit - (int64_t)piece->length;
    return piece->result == TAIO_UNTRIED || piece->result == -EAGAIN || piece->result == -EOPNOTSUPP || piece->result == -EINTR;
}

uint64_t taio_pieces_first_open(const struct taio_pieces *pieces)
{
    uint64_t i = 0;
    while (i < pieces->count && pieces->pieces[i].result == (int64_t)pieces->pieces[i].length)
        i++;
    return i;
}

void taio_pieces_fail(struct taio_pieces *pieces, struct taio_piece *piece, int64_t moved)
{
    if (pieces->failed == NULL) {
        pieces->failed = piece;
        pieces->partial = moved > 0 ? (uint64_t)moved : 0;
    }
    __atomic_store_n(&pieces->stop, 1, __ATOMIC_RELAXED); /* atomic because the loop may set it too; it orders nothing */
}

uint64_t taio_pieces_moved(const struct taio_pieces *pieces)
{
    uint64_t moved = pieces->partial;
    for (uint64_t i = 0; i < pieces->count; i++)
        moved += pieces->pieces[i].result > 0 ? (uint64_t)pieces->pieces[i].result : 0;
    return moved;
}

int taio_pieces_inline(struct taio_pieces *pieces, uint64_t limit)
{
    uint64_t moved = 0;
    for (; pieces->next < pieces->count; pieces->next++) {
        struct taio_piece *piece = &pieces->pieces[pieces->next];
        uint64_t done = 0;
        if (piece->length > limit)
            return -EAGAIN; /* too much to copy in one tick of the loop */
        if (moved >= limit)
            return 1;
        while (done < piece->length) { /* a short count may mean that the rest is not cached; only 0 means the end of the file */
            int64_t n = taio_pread_cached(pieces->fd, NULL, (char *)(uintptr_t)piece->memory + done, piece->length - done, piece->offset + (int64_t)done);
            if (n < 0)
                return (int)n;
            n &= ~TAIO_SLEPT;
            if (n == 0)
                break;
            done += (uint64_t)n;
        }
        piece->result = (int64_t)done;
        if (done < piece->length)
            return -ENODATA;
        moved += done + 512; /* bytes: what a system call costs, so that many tiny pieces reach the limit too */
    }
    return 0;
}

int taio_pieces_are_known(const struct taio_pieces *pieces, const uint8_t *regions, unsigned shift, uint64_t count)
{
    for (uint64_t i = 0; i < pieces->count; i++) {
        const struct taio_piece *piece = &pieces->pieces[i];
        uint64_t first = (uint64_t)piece->offset >> shift, last = ((uint64_t)piece->offset + piece->length - (piece->length > 0)) >> shift;
        for (uint64_t region = first; region <= last; region++)
            if (region >= count || !regions[region])
                return 0;
    }
    return 1;
}

void taio_pieces_note_known(const struct taio_pieces *pieces, uint8_t *regions, unsigned shift, uint64_t count)
{
    for (uint64_t i = 0; i < pieces->count; i++) {
        const struct taio_piece *piece = &pieces->pieces[i];
        if (piece->result <= 0)
            continue;
        uint64_t last = ((uint64_t)piece->offset + (uint64_t)piece->result - 1) >> shift;
        for (uint64_t region = (uint64_t)piece->offset >> shift; region <= last && region < count; region++)
            regions[region] = 1;
    }
}
