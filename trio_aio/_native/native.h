/* The border between Python and the kernel. What stands here is mechanism: every decision (which lane, how many at once,
 * when to retry) is made in Python, and no Python object comes this way. Functions return 0 or a count, or -errno. */
#ifndef TRIO_AIO_NATIVE_H
#define TRIO_AIO_NATIVE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <poll.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/* Kernel constants newer than the oldest headers we build with: values are ABI, from include/uapi/linux/fs.h. */
#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x00000020
#endif
#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080
#endif

/* ---- the system calls, one to one (syscalls.c) ---- */

int taio_io_setup(unsigned nr_events, uint64_t *context);
int taio_io_destroy(uint64_t context);
long taio_io_submit(uint64_t context, long nr, struct iocb **iocbs);
int taio_io_cancel(uint64_t context, struct iocb *iocb, struct io_event *result);
long taio_io_getevents(uint64_t context, long min_nr, long nr, struct io_event *events, struct timespec *timeout);

/* One preadv2(RWF_NOWAIT): what the page cache has, at once, or -EAGAIN / -EOPNOTSUPP. */
int64_t taio_pread_nowait(int fd, void *memory, size_t length, int64_t offset);
int64_t taio_preadv_nowait(int fd, const struct iovec *vector, int parts, int64_t offset);

/* What a descriptor is, from memory alone (AT_STATX_DONT_SYNC), so that the event loop may ask. */
struct taio_description {
    uint32_t mode;         /* st_mode */
    uint32_t open_flags;   /* fcntl(F_GETFL) */
    uint64_t device;       /* st_dev (st_rdev of a block device) as statx gives it: major << 32 | minor */
    uint64_t inode;
    uint64_t size;
    uint32_t has_dioalign; /* 1 where statx knows STATX_DIOALIGN; 0/0 below then means that O_DIRECT is not supported */
    uint32_t dio_memory;   /* bytes */
    uint32_t dio_offset;   /* bytes */
    uint32_t dio_read_offset; /* bytes, for reads; 0: as dio_offset */
};
int taio_describe(int fd, struct taio_description *description);
/* The same, and where the kernel does not say how direct I/O is to be aligned, find out by reading. May sleep. */
int taio_describe_and_probe(int fd, struct taio_description *description);
/* The size of a file whose name and attributes are in memory, else -errno. It never sleeps: O_PATH does not call the filesystem's open, and
 * RESOLVE_CACHED (Linux 5.12) gives up where a name would have to be looked up. */
int64_t taio_cached_size(const char *path);

/* Memory that was never touched is made in small pages at the first touch, which takes as long as the copy of what is read, and is taken
 * apart in small pages when it is freed. Never sleeps. */
void taio_use_huge_pages(uint64_t memory, uint64_t length);

/* fstat(2) as numbers, for os.stat_result. */
struct taio_stat {
    uint64_t mode, inode, device, links, uid, gid, rdev, block_size, blocks;
    int64_t size, atime_ns, mtime_ns, ctime_ns;
};

/* A whole file in one request. */
struct taio_whole {
    struct taio_description description; /* first: TAIO_OPEN's `extra` */
    int32_t fd;        /* -1; or left open, since the file is longer than what was read */
    uint64_t memory;   /* address of the bytes */
    uint64_t capacity; /* bytes; nothing is read of a file that is longer */
    uint64_t first;    /* bytes to read at most */
};

/* What the lanes deliver: the token that was given with the request, and how it ended. */
struct taio_completion {
    uint64_t token;
    int64_t result;      /* what the system call returned, or -errno */
    int64_t transferred; /* bytes moved, also where `result` is an error that came after them */
};

/* ---- runs (pieces.c): many reads, or many writes, of one file that are handed over together ---- */

#define TAIO_UNTRIED INT64_MIN

struct taio_piece {
    int64_t offset;
    uint64_t memory; /* address */
    uint64_t length;
    int64_t result;  /* bytes moved, -errno, or TAIO_UNTRIED */
};

struct taio_pieces {
    struct taio_piece *pieces;
    uint64_t count, next; /* pieces before `next` were begun, or are whole, in the lane that has the run now */
    uint64_t bits;        /* all offsets and lengths, or-ed: what they have in common is their alignment */
    uint64_t memory_bits; /* all addresses, likewise */
    uint64_t unit;        /* what offsets and lengths must be multiples of; 1: nothing */
    uint64_t memory_unit; /* what addresses must be, unless `bounce` is set */
    uint64_t bounce;      /* address of aligned memory for the kernel lane, `stride` bytes for each slot; 0: pieces are used as they are */
    uint64_t stride;
    uint32_t width;       /* the most slots of the kernel lane that it may keep */
    uint32_t out;         /* slots that it has */
    struct taio_piece *failed; /* what stopped it; NULL: nothing did, or nobody wants it any more */
    uint64_t partial;     /* bytes of `failed` that were moved all the same */
    int32_t fd, writing, flags;
    int32_t stop;         /* begin no more pieces: one failed, or nobody wants them any more. Set by the loop or the worker that has it */
};

/* Make pieces of `length` bytes, side by side from `memory`. -EINVAL: an offset is negative, and *bad is its index. */
int taio_pieces_blocks(struct taio_pieces *pieces, const int64_t *offsets, uint64_t length, uint64_t memory, uint64_t *bad);
/* Read from the page cache alone, until a piece is not there or `limit` bytes were moved: 0 when all is done, 1 if the limit was
 * reached, or -errno of the piece at `next`. */
int taio_pieces_inline(struct taio_pieces *pieces, uint64_t limit);
/* Say whether `piece` is to be tried (again), by a lane that may sleep more than the last. */
int taio_pieces_can_retry(const struct taio_pieces *pieces, const struct taio_piece *piece);
/* The first piece that is not whole: its index, or `count`. */
uint64_t taio_pieces_first_open(const struct taio_pieces *pieces);
/* Let a run end with a piece that failed, of which `moved` bytes are done. */
void taio_pieces_fail(struct taio_pieces *pieces, struct taio_piece *piece, int64_t moved);
/* The bytes that were moved. */
uint64_t taio_pieces_moved(const struct taio_pieces *pieces);

/* ---- the kernel lane (ring.c) ---- */

/* Requests in one io_submit, until something better was learned. */
#define TAIO_TOGETHER 4

struct taio_ring;

struct taio_ring *taio_ring_new(uint64_t context, unsigned slots, int event_fd);
void taio_ring_free(struct taio_ring *ring); /* memory only: io_destroy is the caller's */
int taio_ring_is_mapped(struct taio_ring *ring);
void taio_ring_use_getevents(struct taio_ring *ring);

/* Put a request behind those waiting for taio_ring_submit. `slot` is free: its last completion has been taken. */
void taio_ring_prepare(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory,
                       uint64_t length, int64_t offset, int rw_flags);
/* The same, and if `alone` (no other request is in flight) call io_submit at once. Returns TAIO_PREPARED: it waits for taio_ring_submit;
 * TAIO_SUBMITTED; TAIO_SUBMITTED_EVENT: submitted, and an event is in the ring; or -errno: refused, and the slot is free again. */
enum { TAIO_SUBMITTED, TAIO_SUBMITTED_EVENT, TAIO_PREPARED };
int taio_ring_start(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory, uint64_t length,
                    int64_t offset, int rw_flags, int alone);
/* Set how many requests one io_submit takes at most. */
void taio_ring_set_together(struct taio_ring *ring, unsigned count);
/* What the fixed part of an io_submit costs, measured over the last calls, in units of the part for each request; below 0: not known. */
double taio_ring_fixed_cost(const struct taio_ring *ring);
/* Give a run a slot: its next piece is prepared, and whenever that is complete the one after it, which taio_ring_reap submits, until the
 * run has no more, or more slots than its width; then a completion gives the slot back. `place`: which part of the run's bounce memory. 0: it has no piece for it. */
int taio_ring_prepare_pieces(struct taio_ring *ring, unsigned slot, uint64_t token, struct taio_pieces *pieces, unsigned place);
/* Take a prepared request back before it was submitted: 1 if it was there. */
int taio_ring_withdraw(struct taio_ring *ring, unsigned slot);
unsigned taio_ring_prepared(struct taio_ring *ring);
int taio_ring_is_prepared(struct taio_ring *ring, unsigned slot);
/* Submit what is prepared, a few in each call. A request that the kernel refuses becomes a completion in `out` and the rest go on behind it; what finds
 * the ring full stays prepared. Returns the number of completions written. */
int taio_ring_submit(struct taio_ring *ring, struct taio_completion *out, int room);
uint64_t taio_ring_calls(struct taio_ring *ring); /* of io_submit, so far */
int taio_ring_cancel(struct taio_ring *ring, unsigned slot); /* 0: accepted, the completion will come */

/* ---- the workers (workers.c) ---- */

enum taio_operation {
    /* Reads and writes. extra: 0; TAIO_BUFFERED_FD, or that and the address of a struct taio_buffered_fd: write through a descriptor of the same file
     * without O_DIRECT, made for this one write or kept there; or what offsets and lengths must be multiples of, and the bytes are moved
     * through page-aligned memory of the worker's own. */
    TAIO_READ,      /* until `length` bytes, the end of the file or an error */
    TAIO_WRITE,     /* until all is written or an error */
    TAIO_READV,     /* the same over `length` iovecs */
    TAIO_WRITEV,
    TAIO_APPEND,    /* write(2), for O_APPEND: the result is the position after it, where the kernel put it */
    TAIO_FSYNC,
    TAIO_FDATASYNC,
    TAIO_OPEN,      /* memory: path; fd: directory; length: creation mode; extra: struct taio_description */
    TAIO_CLOSE,     /* extra: 0, or a struct taio_buffered_fd to be closed as well; flags: 1 if nothing else is */
    TAIO_STAT,      /* extra: struct taio_stat */
    TAIO_TRUNCATE,  /* to `offset` */
    TAIO_SEEK,      /* lseek to `offset`; flags: whence; the result is the position */
    TAIO_FALLOCATE, /* `length` bytes from `offset`; flags: mode */
    TAIO_DESCRIBE,  /* extra: struct taio_description */
    TAIO_PIECES,       /* memory: struct taio_pieces; the pieces that are not whole, in order */
    TAIO_POPULATE,  /* have the pages of `length` bytes at `memory` made */
    TAIO_READ_FILE, /* open, read and close; memory: path; length: creation mode; extra: struct taio_whole */
    TAIO_WRITE_FILE /* open, write and close; likewise */
};

#define TAIO_BUFFERED_FD 1

/* A descriptor of the same file without O_DIRECT, opened when it is first needed. It is kept since the process loses its record locks
 * (fcntl(2)) with every descriptor of the file that it closes. */
struct taio_buffered_fd {
    int32_t fd; /* or TAIO_NOT_YET, or TAIO_OPENING: a worker is at it */
};
#define TAIO_NOT_YET (-1)
#define TAIO_OPENING (-2)

/* One blocking read or write (transfer.c). The vector is used up. The result is what was moved, or -errno. */
struct taio_transfer {
    int fd, flags, writing;
    struct iovec *vector;
    uint64_t parts;
    int64_t offset, transferred;
};
struct taio_scratch {
    char *memory; /* of one worker, made when first needed */
};
/* A second descriptor of the same file, without O_DIRECT. Clearing the flag of the first would race with what is in flight. */
int taio_buffered_fd_open(int fd);
int64_t taio_transfer(struct taio_transfer *transfer);
int64_t taio_transfer_bounced(struct taio_transfer *transfer, uint64_t unit, struct taio_scratch *scratch);
int64_t taio_pieces_transfer(struct taio_pieces *pieces, struct taio_scratch *scratch); /* gives the bytes moved */
void taio_scratch_free(struct taio_scratch *scratch);

#define TAIO_CHAIN 16
#define TAIO_NONE UINT32_MAX

struct taio_pool;

struct taio_pool *taio_pool_new(unsigned slots, int event_fd);
void taio_pool_free(struct taio_pool *pool); /* no worker may be left */
void taio_pool_work(struct taio_pool *pool); /* the body of a worker: returns after taio_pool_stop */
void taio_pool_stop(struct taio_pool *pool);
/* Fill a free slot. `before`: the slot it is chained behind, or TAIO_NONE. A chain has TAIO_CHAIN at
 * most, either TAIO_READs that have no `extra` or none of these. */
void taio_pool_prepare(struct taio_pool *pool, unsigned slot, unsigned before, uint64_t token, int operation, int fd, uint64_t memory,
                       uint64_t length, int64_t offset, int flags, uint64_t extra);
/* Hand over a prepared slot and its chain. Returns how many more wait than workers are idle (<= 0: no further worker is needed). */
int taio_pool_hand_over(struct taio_pool *pool, unsigned slot);
/* Take a request back that no worker has begun: 1 if it will never run. Its completion comes all the same, with -ECANCELED, and only
 * then is the slot free. */
int taio_pool_withdraw(struct taio_pool *pool, unsigned slot);

/* ---- both lanes (reap.c) ---- */

/* Take completions of both lanes (either may be NULL); drain_fd >= 0: empty that eventfd first. Returns how many were written. */
int taio_reap(struct taio_ring *ring, struct taio_pool *pool, int drain_fd, struct taio_completion *out, int room);

int taio_ring_reap(struct taio_ring *ring, struct taio_completion *out, int room);
int taio_pool_reap(struct taio_pool *pool, struct taio_completion *out, int room);

#endif
