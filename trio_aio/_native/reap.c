/* Completions of both lanes. They signal one eventfd, and the loop's thread takes them in one call. How many of
 * them are served before other tasks run is decided in _engine/completions.py. */
#include "native.h"

#include <unistd.h>

int taio_reap(struct taio_ring *ring, struct taio_pool *pool, int drain_fd, struct taio_completion *out, int room)
{
    int taken = 0;
    /* Reset the eventfd before looking. A completion that arrives in between leaves it readable, which costs one needless look; resetting it
     * afterwards could lose that completion's signal. */
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
