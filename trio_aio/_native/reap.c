/* Both lanes end in one place: one eventfd tells of them, one call takes what they finished. */
#include "native.h"

#include <unistd.h>

int taio_reap(struct taio_ring *ring, struct taio_pool *pool, int drain_fd, struct taio_completion *out, int room)
{
    int taken = 0;
    /* Emptied before the look, not after: what ends in between then leaves it readable, for one look too many and none too few. */
    if (drain_fd >= 0) {
        uint64_t count;
        while (read(drain_fd, &count, sizeof count) < 0 && errno == EINTR)
            ;
    }
    if (pool != NULL)
        taken += taio_pool_reap(pool, out, room);
    if (ring != NULL)
        taken += taio_ring_reap(ring, out + taken, room - taken);
    return taken;
}
