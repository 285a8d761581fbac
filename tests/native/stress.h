/* What the parts of the stress test share. */
#ifndef STRESS_H
#define STRESS_H

#include "native.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                       \
    do                                                                                                         \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: not true: %s (seed %" PRIu64 ")\n", __FILE__, __LINE__, #condition, seed); \
            abort();                                                                                           \
        }                                                                                                      \
    while (0)

extern uint64_t seed;

uint64_t draw(uint64_t below);

/* A call on names that a worker makes for a slot. The loop owns it; a worker does, and all that it points to, while the request is out. */
struct name_call;

/* Make and remove the tree that the calls use, in a folder. */
void names_make_tree(const char *folder);
void names_remove_tree(void);
/* Draw a call. Returns it, and the address of its struct taio_name. */
struct name_call *names_begin(unsigned slot, uint64_t *address);
/* Check what a call has done, and free it. ran: 0 if it was withdrawn. */
void names_end(struct name_call *call, int64_t result, int ran);
/* Make calls of the inline lane, on the loop's thread. */
void names_inline(void);

#endif
