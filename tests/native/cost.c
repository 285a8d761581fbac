/* Prints what the ring learns from calls of io_submit that took a known time.
 *
 * usage: cost N:T...      each call had N requests and took T nanoseconds. Prints taio_ring_fixed_cost. */
#include "native.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t clock_now = 1, next_call_takes; /* nanoseconds */

static int fake_clock(clockid_t id, struct timespec *time)
{
    (void)id;
    *time = (struct timespec){(time_t)(clock_now / 1000000000), (long)(clock_now % 1000000000)};
    return 0;
}

static long fake_io_submit(uint64_t context, long count, struct iocb **iocbs)
{
    (void)context, (void)iocbs;
    clock_now += next_call_takes;
    return count;
}

#define clock_gettime fake_clock
#define taio_io_submit fake_io_submit
#include "ring.c"

enum { SLOTS = 128 };

int main(int argc, char **argv)
{
    static char not_mapped[4096]; /* in place of the kernel's completion ring */
    struct taio_completion refused[SLOTS];
    struct taio_ring *ring = taio_ring_new((uint64_t)(uintptr_t)not_mapped, SLOTS, -1);
    if (ring == NULL)
        return 1;
    taio_ring_set_together(ring, SLOTS);
    for (int i = 1; i < argc; i++) {
        char *time;
        unsigned long count = strtoul(argv[i], &time, 10);
        if (*time != ':' || count < 1 || count > SLOTS)
            return 2;
        next_call_takes = strtoull(time + 1, NULL, 10);
        for (unsigned slot = 0; slot < count; slot++)
            taio_ring_prepare(ring, slot, slot, IOCB_CMD_PREAD, -1, 0, 0, 0, 0);
        taio_ring_submit(ring, refused, SLOTS);
    }
    printf("%.9g\n", taio_ring_fixed_cost(ring));
    taio_ring_free(ring);
    return 0;
}
