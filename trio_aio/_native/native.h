/* The interface between Python and the kernel: plain numbers and memory addresses, no Python objects.
 *
 * Python decides policy: which lane takes a request, how many may be in flight, and which lane tries next. C decides what must not wait for
 * Python: it calls again after EINTR and after a short count, reads once more without O_DIRECT after EIO, splits the waiting requests among
 * calls of io_submit, and starts the next piece of a many-piece request when one completes.
 *
 * Three kinds of threads run this code. The *loop* is the thread of one event loop: it alone calls taio_ring_* and taio_submitter_*, and
 * taio_pool_* except taio_pool_work. A *worker* is a thread inside taio_pool_work, a *submitter* a thread of submitter.c. Each struct below says which of them owns it, and when.
 *
 * Functions return 0 or a count, or -errno, unless their comment says otherwise. */
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

/* Return the SHA-256 of the native.cdef.txt that this was built from, in hexadecimal digits. */
const char *taio_declarations(void);

static inline int64_t taio_nanoseconds(struct statx_timestamp t)
{
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- the system calls, one to one (syscalls.c) ---- */

int taio_io_setup(unsigned nr_events, uint64_t *context);
int taio_io_destroy(uint64_t context);
long taio_io_submit(uint64_t context, long nr, struct iocb **iocbs);
int taio_io_cancel(uint64_t context, struct iocb *iocb, struct io_event *result);
long taio_io_getevents(uint64_t context, long min_nr, long nr, struct io_event *events, struct timespec *timeout);

/* Call preadv2(RWF_NOWAIT) once. Returns the bytes that it copied from the page cache, -EAGAIN if it would have slept, or -EOPNOTSUPP if the
 * filesystem does not know the flag. */
int64_t taio_pread_nowait(int fd, void *memory, size_t length, int64_t offset);
int64_t taio_preadv_nowait(int fd, const struct iovec *vector, int parts, int64_t offset);

/* ---- the page cache (page_cache.c) ---- */

/* Where a device's attributes are: what a worker or a submitter has found out. */
enum taio_place {
    TAIO_UNKNOWN,
    TAIO_LOCAL, /* the kernel knows the attributes of files itself */
    TAIO_SERVER /* it asks a server for them: a plain read may wait for the answer, and io_submit too */
};
/* Return how often this thread has slept. A look takes 0.4 us. Not counted: a sleep for a page of the program itself, as the code that runs,
 * which was not in memory (a major fault): that says nothing of the file. */
long taio_times_slept(void);
/* Return whether the attributes of a file's device live with a server: then a question for them sleeps, each time (FUSE, network filesystems).
 * It may sleep. */
enum taio_place taio_place_of(int fd);

/* How the page cache is asked about one file where RWF_NOWAIT does not work. The worker that runs a TAIO_READ_AND_ASK owns it, then the loop. */
struct taio_residency {
    int32_t way;      /* enum taio_way */
    int32_t place;    /* enum taio_place; TAIO_UNKNOWN: find it out too */
    int32_t may_map;  /* 0: the fd may be closed by others, and a mapping would keep the file */
    uint64_t address, length, start; /* the mapping, and where in the file it starts, bytes; all 0: there is none */
    uint64_t beyond;  /* a mapping of one page behind the end of every file */
    uint64_t page;    /* its length */
};
enum taio_way {
    TAIO_NO_WAY,
    TAIO_BY_CACHESTAT, /* of all files of the device */
    TAIO_BY_MINCORE
};
/* Find out how to ask, by a page at `offset` that was just read. `way` stays TAIO_NO_WAY if there is none, or the page is gone already, or the
 * kernel is not truthful to this process. It may sleep: for workers. */
void taio_residency_find(struct taio_residency *residency, int fd, int64_t offset);
/* Unmap what is mapped, before the fd is closed: then this is not the last use of the file, and does not sleep. */
void taio_residency_release(struct taio_residency *residency);
/* Return 0 if a read of this range needs nothing but the page cache, and starts no read-ahead; also if it lies behind the end of a regular file.
 * 1: the same, and not long ago the whole region around it was cached. Otherwise -EAGAIN; -EPERM: the kernel does not tell this process;
 * -ERANGE: not mapped. `residency`: NULL where RWF_NOWAIT works; then it is also 0 on a Linux older than 6.5, which cannot be asked. Never
 * sleeps. */
int taio_is_cached(int fd, const struct taio_residency *residency, int64_t offset, uint64_t length);
/* Forget what is known of an fd's number: it belongs to another file now. taio_describe calls it, and so does code that opens a file without that. */
void taio_forget_cached(int fd);
/* Return a number for the file that an fd was last described for. */
uint64_t taio_use_of(int fd);
/* Return the time in units of 4.2 ms, from a clock that needs no system call. It starts again after 2^24 units. */
uint64_t taio_coarse_now(void);
/* Read what is cached: by RWF_NOWAIT, or plainly with a residency. -EAGAIN (also if the read would set the time of access), -EOPNOTSUPP, or as
 * taio_is_cached. Plain reads are watched, and of the others the first around an offset and then one in 32: if it slept all the same,
 * TAIO_SLEPT is added to the count. */
#define TAIO_SLEPT ((int64_t)1 << 40)
int64_t taio_pread_cached(int fd, const struct taio_residency *residency, void *memory, size_t length, int64_t offset);

/* ---- the time of access (access_time.c): never sleeps ---- */

/* Return whether a read would set the file's time of access, for which the filesystem may wait. */
int taio_sets_access_time(int fd);
/* The same where the filesystem may be one with a server. -EOPNOTSUPP: the time is due, and the filesystem does not know RWF_NOWAIT. */
int taio_sets_access_time_or_server(int fd);
/* Nanoseconds since 1970. */
struct taio_times {
    int64_t accessed, modified, changed;
};
/* Return a number for a file, for the functions below. That of an fd is taio_use_of's. */
uint64_t taio_file_of(uint64_t device, uint64_t inode);
/* As taio_sets_access_time, by times that were just asked for. `fd`: of that file, and no server has it. */
int taio_times_are_due(uint64_t file, int fd, const struct taio_times *times);
/* For the thread that makes a read which the loop has left to it; call it before the read. Return what taio_read_has_ended takes; 0: none
 * was left. */
uint64_t taio_read_begins(uint64_t file);
/* Note whether a read that has moved bytes has set the time, if the loop had left such a read. */
void taio_read_has_ended(uint64_t file, int fd, uint64_t left);
/* Count that a file was changed, after the change. */
void taio_note_change(void);

/* ---- what an fd is (syscalls.c) ---- */

/* What kind of file an fd refers to. The caller owns it; while a request holds its address, the worker that runs the request does. */
struct taio_description {
    uint32_t mode;         /* st_mode */
    uint32_t open_flags;   /* fcntl(F_GETFL) */
    uint64_t device;       /* st_dev (st_rdev of a block device) as statx gives it: major << 32 | minor */
    uint64_t inode;
    uint64_t size;
    uint64_t blocks;       /* st_blocks; 0: the file has none, as those that the kernel makes up while they are read */
    uint64_t birth;        /* when the file was made, nanoseconds; 0: the filesystem does not know */
    uint32_t has_dioalign; /* 1: the alignments below are known, and two zeros mean that O_DIRECT is not supported */
    uint32_t dio_memory;   /* bytes */
    uint32_t dio_offset;   /* bytes */
    uint32_t dio_read_offset; /* bytes, for reads; 0: the same as dio_offset */
    int32_t buffered_fd;   /* a second fd of the same file without O_DIRECT, or -1 */
    int32_t buffered_error; /* errno: the second fd is needed, and cannot be had; 0 otherwise */
    uint32_t watched;      /* 1: a read of nothing has slept. A listener is asked about each read (fanotify(7), FAN_ACCESS_PERM) */
};
/* Describe an fd from memory alone (AT_STATX_DONT_SYNC). Never sleeps, so the loop may call it. */
int taio_describe(int fd, struct taio_description *description);
/* Describe an fd, and find out whether its reads are watched. If the kernel does not report the alignment of direct I/O, find it out by reading.
 * May sleep: for workers. */
int taio_describe_and_probe(int fd, struct taio_description *description);
/* Return the size of a file whose name and attributes are in memory, otherwise -errno. Never sleeps: O_PATH does not call the filesystem's
 * open, and RESOLVE_CACHED (Linux 5.12) fails with EAGAIN if the disk would have to be read for a name. */
int64_t taio_cached_size(const char *path);

/* Ask for huge pages. With small ones, the page faults of fresh memory take as long as copying the data that is read into it. Never sleeps. */
void taio_use_huge_pages(uint64_t memory, uint64_t length);

/* ---- memory of callers (memory.c): all but taio_memory_query may sleep, so they are for workers ---- */

/* Have the kernel copy between our memory and a caller's, which may belong to a mapped file. `outward`: `to` is the caller's, otherwise `from`
 * is. Returns 0; -EFAULT if a page is gone, and a part may have been copied; or -ENOMEM. */
int taio_copy(void *to, const void *from, uint64_t count, int outward);
/* Copy callers' memory to `to`, one part after the other. Returns the bytes, or -errno as taio_copy. */
int64_t taio_gather(void *to, const struct iovec *vector, uint64_t parts);
/* Return 1 if some of this memory belongs to a file, or if that cannot be found out; 0 if all of it is anonymous; -EFAULT if some of it is no
 * memory (any more). */
int taio_memory_is_mapped(uint64_t memory, uint64_t length);
/* As taio_memory_is_mapped, for the loop: it asks for one mapping instead of reading the list of all. -ENOTTY: Linux is older than 6.11. */
int taio_memory_query(uint64_t memory, uint64_t length);

/* The result of fstat(2) as numbers, for os.stat_result. Owned by the caller, and by the worker while TAIO_STAT is queued or runs. */
struct taio_stat {
    uint64_t mode, inode, device, links, uid, gid, rdev, block_size, blocks;
    int64_t size, atime_ns, mtime_ns, ctime_ns;
};

#include "names.h"

/* A whole file in one request. Owned by the caller, and by the worker while the request is queued or running. */
struct taio_whole {
    struct taio_description description; /* must come first: slot_open takes this struct's address for the description's */
    int32_t fd;        /* -1, or the fd that was left open because the file is longer than what was read */
    uint64_t memory;   /* address of the bytes */
    uint64_t capacity; /* bytes; a longer file is opened, but not read */
    uint64_t first;    /* the most bytes to read */
};

/* The result of one request. The loop owns it. */
struct taio_completion {
    uint64_t token;      /* the token that the request was prepared with */
    int64_t result;      /* what the system call returned, or -errno */
    int64_t transferred; /* bytes moved, including those before an error in `result` */
};

/* ---- many-piece requests (pieces.c): many reads, or many writes, of one file in one request ---- */

#define TAIO_UNTRIED INT64_MIN

struct taio_piece {
    int64_t offset;
    uint64_t memory; /* address */
    uint64_t length;
    int64_t result;  /* bytes moved, -errno, or TAIO_UNTRIED */
};

/* The loop owns it and its pieces while they are in the inline or the kernel lane. A worker owns them from taio_pool_hand_over of a
 * TAIO_PIECES until the loop has reaped its completion. Only `stop` crosses: the loop may set it while a worker owns the rest. It is a hint
 * (relaxed), which orders nothing: a worker that sees it late moves one piece more. */
struct taio_pieces {
    struct taio_piece *pieces;
    uint64_t count, next; /* pieces before `next` have been started, or are whole, in the current lane */
    uint64_t bits;        /* all offsets and lengths, or-ed: the lowest set bit is their common alignment */
    uint64_t memory_bits; /* all addresses, or-ed */
    uint64_t unit;        /* bytes; offsets and lengths must be multiples of it. 1: any will do */
    uint64_t memory_unit; /* bytes; addresses must be multiples of it, unless `slab_address` is set */
    uint64_t slab_address; /* of aligned memory for the kernel lane, or 0: it uses the memory of the pieces */
    uint64_t stride;      /* bytes of that memory for each slot */
    uint32_t width;       /* the most slots of the kernel lane that it may hold */
    uint32_t out;         /* the slots of the kernel lane that it holds */
    struct taio_piece *failed; /* the first piece that failed; NULL: none did */
    uint64_t partial;     /* bytes of `failed` that were moved before the error */
    int32_t fd, writing, flags;
    int32_t mapped;       /* 1: the memory of some pieces may belong to a mapped file, so only workers touch it */
    int32_t stop;         /* 1: start no more pieces, because one failed or the request was cancelled */
    int32_t slept;        /* 1: io_submit of a piece slept on the loop's thread */
    struct taio_submitter *submitter; /* submits the pieces in the kernel lane; NULL: the loop does */
};

/* Fill in pieces of `length` bytes each, side by side from `memory`. -EINVAL: an offset is negative, and *bad is its index. */
int taio_pieces_blocks(struct taio_pieces *pieces, const int64_t *offsets, uint64_t length, uint64_t memory, uint64_t *bad);
/* Read from the page cache alone, until a piece is not cached or `limit` bytes were moved. Returns 0 when all pieces are done, 1 if the
 * limit was reached, or -errno of the piece at `next`. */
int taio_pieces_inline(struct taio_pieces *pieces, uint64_t limit);
/* Return whether a lane that may sleep more than the last one should try `piece`, or try it again. */
int taio_pieces_can_retry(const struct taio_pieces *pieces, const struct taio_piece *piece);
/* Return the index of the first piece that is not whole, or `count`. */
uint64_t taio_pieces_first_open(const struct taio_pieces *pieces);
/* Record that `piece` failed after `moved` bytes, and stop. The first failure is kept. */
void taio_pieces_fail(struct taio_pieces *pieces, struct taio_piece *piece, int64_t moved);
/* Return how many bytes were moved, by all lanes. */
uint64_t taio_pieces_moved(const struct taio_pieces *pieces);
/* `regions`: a byte for each 1 << `shift` bytes of the file, `count` in all; not 0: the kernel has read its map of blocks there.
 * Return whether that holds for all pieces. */
int taio_pieces_are_known(const struct taio_pieces *pieces, const uint8_t *regions, unsigned shift, uint64_t count);
/* Note it for the pieces that were read. */
void taio_pieces_note_known(const struct taio_pieces *pieces, uint8_t *regions, unsigned shift, uint64_t count);

/* ---- the kernel lane (ring.c) ---- */

/* The most requests in one io_submit, until Python has set another number. */
#define TAIO_TOGETHER 4

struct taio_ring; /* owned by the loop: no other thread touches it */

/* Return a ring with `slots` slots on a context that io_setup made, or NULL without memory. Completions signal `event_fd`. */
struct taio_ring *taio_ring_new(uint64_t context, unsigned slots, int event_fd);
/* Free the memory. The context remains: io_destroy is the caller's. */
void taio_ring_free(struct taio_ring *ring);
/* Return whether completions are read from the kernel's mapped ring (1) or by io_getevents (0). */
int taio_ring_is_mapped(struct taio_ring *ring);
/* Take completions by io_getevents from now on. */
void taio_ring_use_getevents(struct taio_ring *ring);

/* Put a request behind those that wait for taio_ring_submit. `slot` must be free: its last completion has been taken. */
void taio_ring_prepare(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory,
                       uint64_t length, int64_t offset, int rw_flags);
/* Prepare a request. If `alone` (no other request is in flight) and no other one waits, call io_submit at once. Returns TAIO_PREPARED: it
 * waits for taio_ring_submit; TAIO_SUBMITTED; TAIO_SUBMITTED_EVENT: submitted, and an event is in the ring; TAIO_SUBMITTED_SLEPT: the same, and
 * the call was seen to sleep; or -errno: the kernel refused it, and the slot is free again. */
enum { TAIO_SUBMITTED, TAIO_SUBMITTED_EVENT, TAIO_SUBMITTED_SLEPT, TAIO_PREPARED, TAIO_SETS_TIME };
int taio_ring_start(struct taio_ring *ring, unsigned slot, uint64_t token, int opcode, int fd, uint64_t memory, uint64_t length,
                    int64_t offset, int rw_flags, int alone);
/* The same for a read with RWF_NOWAIT; TAIO_SETS_TIME: it would set the time of access, and nothing was done. */
int taio_ring_start_read(struct taio_ring *ring, unsigned slot, uint64_t token, int fd, uint64_t memory, uint64_t length, int64_t offset,
                         int alone);
/* Set the most requests that one io_submit takes. */
void taio_ring_set_together(struct taio_ring *ring, unsigned count);
/* Return the fixed cost of an io_submit, measured over the last calls, in units of its cost for each request. Below 0: not known. */
double taio_ring_fixed_cost(const struct taio_ring *ring);
/* Give a many-piece request a slot. Its next piece is prepared there; when that completes, taio_ring_reap submits the one after it. The slot
 * is free again, with a completion, when no piece is left to start or the request holds more slots than its width. `place`: the index of the
 * slot's part of the slab. Returns 0 if no piece was left for the slot, which then stays free; otherwise 1. */
int taio_ring_prepare_pieces(struct taio_ring *ring, unsigned slot, uint64_t token, struct taio_pieces *pieces, unsigned place);
/* Withdraw a request that is prepared, gathered or handed over, and not submitted. Returns 1 if it was; its slot is free and no completion
 * comes. */
int taio_ring_withdraw(struct taio_ring *ring, unsigned slot);
/* Whether a slot's iocb was filled, and neither its completion was returned nor it was withdrawn. */
int taio_ring_holds(struct taio_ring *ring, unsigned slot);
/* Return how many requests are prepared and not submitted. */
unsigned taio_ring_prepared(struct taio_ring *ring);
/* Return whether the request in `slot` is prepared, gathered or handed over, and io_submit has not been called for it. */
int taio_ring_is_prepared(struct taio_ring *ring, unsigned slot);
/* Submit the prepared requests, a few in each io_submit. A request that the kernel refuses becomes a completion in `out`, and those behind it
 * are submitted. When the kernel's ring is full, the rest stay prepared. Returns the number of completions written, and TAIO_RING_SLEPT if a
 * call was seen to sleep. */
#define TAIO_RING_SLEPT (1 << 30)
int taio_ring_submit(struct taio_ring *ring, struct taio_completion *out, int room);
/* Return how often io_submit was called. */
uint64_t taio_ring_calls(struct taio_ring *ring);
/* Call io_cancel. 0: accepted, and the completion will come. The kernel does not know a request that a submitter is submitting: the eventfd is
 * signalled when it has done so, to try again. */
int taio_ring_cancel(struct taio_ring *ring, unsigned slot);

/* ---- the submitters (submitter.c): threads that call io_submit where that may sleep ---- */

struct taio_submitter; /* shared by the loop and its thread: submitter.c says how */

#define TAIO_SLOW 4 /* the last calls of io_submit performed their requests before they returned */
#define TAIO_FAST 16 /* a call of io_submit has returned before its requests were complete, since the last hand-over */
#define TAIO_RUNS 32 /* the thread runs: it will take what was handed over */
#define TAIO_LONG 8 /* a call of io_submit has taken so long since the last hand-over that it may have slept */

/* Return a submitter for requests of `ring`, or NULL without memory. Its thread is started by the first hand-over. `probing`: it finds out
 * where the device's attributes are, by the first file that it gets. */
struct taio_submitter *taio_submitter_new(struct taio_ring *ring, int probing);
/* Wait for the thread to end, and free the memory. Before: taio_submitter_stop, and no request is left. */
void taio_submitter_free(struct taio_submitter *submitter);
/* As taio_ring_prepare, but the submitter will call io_submit, after the next taio_submitter_hand_over. */
void taio_ring_gather(struct taio_ring *ring, struct taio_submitter *submitter, unsigned slot, uint64_t token, int opcode, int fd,
                      uint64_t memory, uint64_t length, int64_t offset, int rw_flags);
/* Hand over what is gathered, and wake the thread if it sleeps. Requests that are refused come by taio_ring_reap. Returns an enum taio_place,
 * with TAIO_SLOW (after `limit` such calls), TAIO_FAST, TAIO_LONG and TAIO_RUNS; or -errno: no thread can be had, and what is gathered remains
 * so. */
int taio_submitter_hand_over(struct taio_submitter *submitter, int limit);
/* Hand over the pieces that were gathered while completions were taken. */
void taio_submitter_hand_over_pieces(struct taio_submitter *submitter);
/* Return how often io_submit was called. */
uint64_t taio_submitter_calls(struct taio_submitter *submitter);
/* Let the thread end when nothing is left to submit. It signals the eventfd as it leaves. */
void taio_submitter_stop(struct taio_submitter *submitter);
/* Return whether it has left, or never started: taio_submitter_free will not wait. */
int taio_submitter_has_left(struct taio_submitter *submitter);

/* ---- the workers (workers.c) ---- */

enum taio_operation {
    /* For reads and writes, `extra` says how the bytes are moved:
     * - 0: between the fd and the caller's memory;
     * - TAIO_BUFFERED_FD: a write through an fd of the same file without O_DIRECT, opened for this request and closed after it;
     * - TAIO_KEPT_FD(n): a write through the fd `n` of the same file, which has no O_DIRECT;
     * - an alignment above 1, in bytes: direct I/O through page-aligned memory of the worker; offsets and lengths become multiples of it.
     *   TAIO_MAPPED in it: the caller's memory may belong to a mapped file. */
    TAIO_READ,      /* until `length` bytes, the end of the file or an error */
    TAIO_WRITE,     /* until all is written or an error */
    TAIO_READV,     /* as TAIO_READ; memory: `length` iovecs */
    TAIO_WRITEV,    /* as TAIO_WRITE; memory: `length` iovecs */
    TAIO_APPEND,    /* write(2) with O_APPEND; the result is the position after the last byte */
    TAIO_FSYNC,
    TAIO_FDATASYNC,
    TAIO_OPEN,      /* memory: path; fd: directory; length: creation mode; extra: struct taio_description */
    TAIO_CLOSE,     /* extra: 0, or TAIO_KEPT_FD of an fd that is closed too; flags: 1 to close only that; memory: NULL, or a struct
                     * taio_cursor whose position is set first */
    TAIO_STAT,      /* extra: struct taio_stat */
    TAIO_TRUNCATE,  /* to `offset` */
    TAIO_SEEK,      /* lseek to `offset`; flags: whence; the result is the position */
    TAIO_FALLOCATE, /* `length` bytes from `offset`; flags: mode */
    TAIO_DESCRIBE,  /* extra: struct taio_description; flags: 1 to open the second fd of an fd with O_DIRECT */
    TAIO_PIECES,    /* memory: struct taio_pieces; moves the pieces that are not whole, in order */
    TAIO_POPULATE,  /* fault in the pages of `length` bytes at `memory` */
    TAIO_GATHER,    /* copy from `length` iovecs at `memory` to the address `extra` */
    TAIO_INSPECT,   /* taio_memory_is_mapped of `length` bytes at `memory` */
    TAIO_READ_FILE, /* open, read and close; memory: path; length: creation mode; extra: struct taio_whole */
    TAIO_WRITE_FILE, /* open, write and close; arguments as TAIO_READ_FILE */
    TAIO_CURSOR_READ,  /* read at the kernel's file position; extra: struct taio_cursor */
    TAIO_CURSOR_WRITE, /* write at the kernel's file position, all or until an error; extra: struct taio_cursor */
    TAIO_CURSOR_SEEK,  /* lseek to `offset`; flags: whence; extra: struct taio_cursor; the result is the position */
    TAIO_NAME,         /* a call on names; extra: struct taio_name */
    TAIO_READ_AND_ASK  /* as TAIO_READ without `extra`, then taio_residency_find; extra: struct taio_residency */
};

/* A call that uses the kernel's file position (cursor.c). The caller owns it, and the worker that runs the request. Only `state` crosses. */
struct taio_cursor {
    int64_t left;        /* where the last call left the position; TAIO_ANYWHERE: no matter where it is */
    int64_t wanted;      /* if it is still there, it is moved here first: what was read ahead is given back */
    int64_t start;       /* -1; the worker stores the position at which the call started */
    int64_t position;    /* the worker stores the position behind what it did */
    uint64_t unit;       /* bytes; with O_DIRECT, what offsets and lengths must be multiples of; otherwise 1 */
    int32_t buffered_fd; /* for writes to an fd with O_DIRECT: the second fd; otherwise -1 */
    int32_t append;      /* 1: the fds have O_APPEND */
    int32_t line;        /* 1: one read(2), and the position is set behind the first newline */
    int32_t mapped;      /* 1: the caller's memory may belong to a mapped file */
    int32_t at_offset;   /* 1: leave the position alone while reading, and set it in the end, unless `state` says otherwise */
    int32_t state;       /* the worker commits the call, or the loop abandons it: the first that swaps TAIO_PENDING wins (acquire, release) */
};
enum { TAIO_PENDING, TAIO_COMMITTED, TAIO_ABANDONED };
#define TAIO_ANYWHERE (-2)

/* O_DIRECT cannot write part of a block, so such writes need an fd without it. That of an open file is opened together with the first, and
 * kept until the file is closed: whenever the process closes an fd of a file, it loses its record locks (fcntl(2)) on that file. */
#define TAIO_BUFFERED_FD 1
#define TAIO_KEPT_FD(fd) (((uint64_t)(fd) + 1) << 1 | TAIO_BUFFERED_FD)
#define TAIO_MAPPED 2 /* its bit means this only where TAIO_BUFFERED_FD is not set */

/* One blocking read or write (transfer.c). Owned by the worker that makes it, on its stack. */
struct taio_transfer {
    int fd, flags, writing;
    struct iovec *vector; /* changed by the transfer */
    uint64_t parts;
    int64_t offset, transferred; /* bytes */
    int mapped; /* 1: the kernel copies from and to the vector's memory, which may belong to a mapped file */
};
/* Page-aligned memory of one worker. */
struct taio_scratch {
    char *memory; /* NULL until it is first needed */
};
/* Return a new fd of the same file without O_DIRECT. Clearing the flag of the first would race with requests in flight. */
int taio_buffered_fd_open(int fd);
/* Return whether a write starts below the process's limit on file sizes (RLIMIT_FSIZE) and ends above it. Never sleeps. */
int taio_crosses_size_limit(int64_t offset, uint64_t length);
/* Move all bytes, or stop at the end of the file or an error. Returns the bytes moved, or -errno; `transferred` counts in either case. */
int64_t taio_transfer(struct taio_transfer *transfer);
/* As taio_transfer, through the scratch memory, with offsets and lengths rounded to multiples of `unit` bytes. */
int64_t taio_transfer_through_scratch(struct taio_transfer *transfer, uint64_t unit, struct taio_scratch *scratch);
/* Read, write or seek at the kernel's position. Returns the bytes, or the position; or -errno. A read that fails does not move the position. */
int64_t taio_cursor_read(struct taio_cursor *cursor, int fd, char *memory, uint64_t length, struct taio_scratch *scratch);
int64_t taio_cursor_write(struct taio_cursor *cursor, int fd, char *memory, uint64_t length, int64_t *moved, struct taio_scratch *scratch);
int64_t taio_cursor_seek(struct taio_cursor *cursor, int fd, int64_t offset, int whence);
/* Let a read with `at_offset` that is in flight not move the position. Returns 0 if it is too late. The loop may call it. */
int taio_cursor_abandon(struct taio_cursor *cursor);
/* Move the pieces from `next` on, in order, until one fails or `stop` is set. Returns the bytes moved. */
int64_t taio_pieces_transfer(struct taio_pieces *pieces, struct taio_scratch *scratch);
/* Release what transfers of the calling worker have kept for the next one. */
void taio_transfer_end_worker(void);
/* Free the memory, if there is any. */
void taio_scratch_free(struct taio_scratch *scratch);

#define TAIO_CHAIN 16 /* the most slots in a chain */
#define TAIO_NONE UINT32_MAX /* no slot */

struct taio_pool; /* shared by the loop and its workers: workers.c says how */

/* Return a pool with `slots` slots and no worker, or NULL without memory. Completions signal `event_fd`. */
struct taio_pool *taio_pool_new(unsigned slots, int event_fd);
/* Free the memory. No thread may be in taio_pool_work. */
void taio_pool_free(struct taio_pool *pool);
/* Be a worker: returns after taio_pool_stop, once the queue is empty. */
void taio_pool_work(struct taio_pool *pool);
/* Let the workers return once the queue is empty. */
void taio_pool_stop(struct taio_pool *pool);
/* Fill a free slot. `before`: the slot that it is chained behind, which was not handed over yet, or TAIO_NONE. A chain has at most
 * TAIO_CHAIN slots. Either all of them are TAIO_READ without `extra`, or none is. */
void taio_pool_prepare(struct taio_pool *pool, unsigned slot, unsigned before, uint64_t token, int operation, int fd, uint64_t memory,
                       uint64_t length, int64_t offset, int flags, uint64_t extra);
/* Queue a prepared slot and its chain for the workers. Returns how many more requests are queued than workers are asleep: at 0 or below, no
 * further worker is needed. */
int taio_pool_hand_over(struct taio_pool *pool, unsigned slot);
/* Withdraw a request that no worker has started. Returns 1 if it will never run. Its completion still comes, with -ECANCELED, and the slot
 * is free only then. */
int taio_pool_withdraw(struct taio_pool *pool, unsigned slot);
/* Whether a slot was handed over and its completion was not returned. */
int taio_pool_holds(struct taio_pool *pool, unsigned slot);
/* The slot behind a prepared one, in its chain; TAIO_NONE: it is the last. */
unsigned taio_pool_behind(struct taio_pool *pool, unsigned slot);

/* ---- both lanes (reap.c) ---- */

/* Take completions of both lanes (either may be NULL). drain_fd >= 0: first reset that eventfd. Returns how many were written. */
int taio_reap(struct taio_ring *ring, struct taio_pool *pool, int drain_fd, struct taio_completion *out, int room);

/* Take completions of one lane, at most `room`. The pool gives none unless there is room for all its slots. Returns how many were written. */
int taio_ring_reap(struct taio_ring *ring, struct taio_completion *out, int room);
int taio_pool_reap(struct taio_pool *pool, struct taio_completion *out, int room);

/* ---- signals (interrupts.c) ---- */

/* Of the main thread. */
struct taio_interrupts {
    volatile int32_t closed;  /* a step runs: hold signals. Written by Python */
    volatile int32_t waiting; /* signals are held */
};
extern struct taio_interrupts taio_interrupts;

/* Hold this signal, from now on, while `closed`. Called on the main thread, again after each new handler. Returns 1; 0 if it has no handler,
 * or none that may be held. */
int taio_interrupts_guard(int number);
/* Pass on the signals that were held. On the main thread, not `closed`. */
void taio_interrupts_deliver(void);
/* The same in 5 ms, by a thread of its own: an exception in a finalizer would be dropped. */
void taio_interrupts_deliver_late(void);

#endif
