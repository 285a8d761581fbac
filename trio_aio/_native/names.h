/* Calls on names: paths, directories and whole files by path (names.c). Included by native.h.
 *
 * A request is one struct taio_name: which call, its arguments, and where its results go. The loop owns it until it hands the request over;
 * then a worker owns it, and all memory that it points to, until the loop has reaped the completion. */
#ifndef TRIO_AIO_NAMES_H
#define TRIO_AIO_NAMES_H

/* `flags` are those of the system call, unless a comment says otherwise. `path` and `path2` are addresses of strings that end with a null byte;
 * `path` is 0 where a call is for the fd `dir` itself. All calls return 0, or what their comment says, or -errno. */
enum taio_name_call {
    TAIO_NAME_STAT,        /* statx of `path`, or of `dir` with AT_EMPTY_PATH; out: `stat`, `key`; with `probe` also `slept` */
    TAIO_NAME_ACCESS,      /* faccessat2; mode */
    TAIO_NAME_READLINK,    /* to `memory`; returns the number of bytes */
    TAIO_NAME_LIST,        /* list a directory to `memory`, a struct taio_list. `fd`: -1 to open `path`, or what the last call has left; it is
                            * left open if there may be more. Returns the number of entries */
    TAIO_NAME_UNLINK,      /* flags: 0, or AT_REMOVEDIR */
    TAIO_NAME_MKDIR,       /* mode; flags: TAIO_PARENTS, TAIO_EXIST_OK */
    TAIO_NAME_REMOVEDIRS,  /* rmdir, and then each parent until one fails */
    TAIO_NAME_RENAME,      /* renameat2 */
    TAIO_NAME_RENAMES,     /* make the parents of `path2`, rename, and remove the parents of `path` that became empty */
    TAIO_NAME_LINK,        /* linkat */
    TAIO_NAME_SYMLINK,     /* `path` is made, and points to `path2` */
    TAIO_NAME_CHMOD,       /* mode; flags: 0, or AT_SYMLINK_NOFOLLOW */
    TAIO_NAME_CHOWN,       /* uid, gid */
    TAIO_NAME_UTIME,       /* times; `number`: 1 to set both to now */
    TAIO_NAME_TRUNCATE,    /* to `number` bytes; out: `stat` */
    TAIO_NAME_STATVFS,     /* to `memory`: 11 uint64_t, as os.statvfs_result has them */
    TAIO_NAME_MKNOD,       /* mode; number: the device */
    TAIO_NAME_GETXATTR,    /* name: path2; flags: AT_SYMLINK_NOFOLLOW; to `memory`; returns the number of bytes */
    TAIO_NAME_SETXATTR,    /* name: path2; value: `memory`; number: XATTR_CREATE or XATTR_REPLACE */
    TAIO_NAME_LISTXATTR,   /* to `memory`; returns the number of bytes */
    TAIO_NAME_REMOVEXATTR, /* name: path2 */
    TAIO_NAME_REALPATH,    /* flags: TAIO_STRICT; to `memory`; returns the number of bytes. An error's path is there too */
    TAIO_NAME_TOUCH,       /* mode; flags: TAIO_EXIST_OK */
    TAIO_NAME_OPEN,        /* open; flags, mode; returns 0, and the fd is in `fd`. `memory`: only a regular file or a block device, and a struct
                            * taio_description that is filled; or 0 */
    TAIO_NAME_SYNC,        /* fsync of a directory */
    TAIO_NAME_OWNER,       /* stat, and the user's name to `memory`; returns the number of bytes; 0: unknown, and the id is in `number` */
    TAIO_NAME_GROUP,       /* the same for the group */
    TAIO_NAME_HOME,        /* the home directory of the user `path`, by default this process's, to `memory`; returns the number of bytes; 0:
                            * unknown */
    TAIO_NAME_CLOSE,       /* close `fd` */
    TAIO_NAME_WRITE,       /* write a file from `memory`; flags: TAIO_APPEND_TO and so on; number: the offset; mode; returns the number of bytes,
                            * and `moved` counts them after an error too; out: `stat` */
    TAIO_NAME_READ,        /* open, read `capacity` bytes at `number` to `memory`, and close; returns the number of bytes; out: `stat` */
    TAIO_NAME_COPY,        /* begin or continue to copy `path` to `path2`; memory: struct taio_copy; returns 1 if there is more to do */
    TAIO_NAME_DISCARD,     /* give up a copy that is not complete; memory: struct taio_copy */
    TAIO_NAME_METADATA,    /* give `path2` mode, times and attributes of `path` */
    TAIO_NAME_UNLINK_MANY, /* memory: struct taio_many; remove names in the directory `path` */
    TAIO_NAME_READ_MANY,   /* memory: struct taio_many; read whole files to `data` */
    TAIO_NAME_TEMPORARY    /* make a file and open it, in the directory `path`: O_TMPFILE, otherwise with a name that is removed at once; flags,
                            * mode; the fd is in `fd`; `memory`: a struct taio_description that is filled, or 0 */
};

/* Flags of TAIO_NAME_WRITE and TAIO_NAME_COPY. */
enum {
    TAIO_APPEND_TO = 1,
    TAIO_EXCLUSIVE = 2,
    TAIO_ATOMIC = 4,
    TAIO_DURABLE = 8,
    TAIO_AT_OFFSET = 16,
    TAIO_FOLLOW = 32,   /* of a copy: copy what a link points to */
    TAIO_PRESERVE = 64  /* of a copy: mode, times and attributes too */
};

/* A file that is being made, and has no name yet, or a temporary one. */
struct taio_new {
    int32_t parent, fd; /* the directory and the file, or -1 */
    int32_t named;      /* 1: it has the name `temporary` */
    int32_t exists;     /* 1: the name that it will get exists, and `old` describes it */
    char temporary[40];
    char last[256];     /* the name that it will get */
    struct taio_stat old;
};

/* A copy between two requests. Zeroed by the caller at first; -1 in all fds. */
struct taio_copy {
    struct taio_new target;
    int32_t source;
    int32_t begun;
    int64_t offset, size; /* `offset`: at the end, the bytes of the copy with its holes */
    struct taio_stat stat; /* of the source */
};

#define TAIO_COPY_PIECE (64 << 20) /* bytes that one request copies at most */

/* Several names in one request. */
struct taio_many {
    uint64_t names;    /* address of the names, one after the other, each with a null byte */
    uint64_t count;
    uint64_t done;     /* out: so many were served. Of reads: the others did not fit */
    uint64_t results;  /* address of `count` int64_t: 0 or the number of bytes, or -errno */
    uint64_t removing; /* address of `count` bytes: 1 for a directory that is to be removed */
    uint64_t data, capacity; /* of reads: where the contents go, one after the other */
};

enum {
    TAIO_PARENTS = 1,  /* make missing parents too */
    TAIO_EXIST_OK = 2, /* it is no error if it exists */
    TAIO_STRICT = 4,   /* what is missing is an error */
    TAIO_UPWARDS = 8   /* of an error below a file, report the first name there, as os.makedirs does */
};

struct taio_name {
    int32_t call;
    int32_t dir, dir2;   /* fds that relative paths start from, or AT_FDCWD */
    int32_t flags;
    int32_t beneath;     /* 1: no path leads out of its directory fd, and of a call that changes a name the last component is not followed;
                            2: the same for the second of two paths */
    int32_t no_links;    /* 1: of a listing: no component of the path may be a link. Such a path may be longer than PATH_MAX */
    int32_t probe;       /* 1: find out whether attributes come from a server */
    int32_t slept;       /* out: 1 if they do */
    int32_t fd;          /* an open fd, or -1; the caller closes what a call has left here */
    uint32_t mode, uid, gid;
    uint64_t moved;      /* out: bytes, also before an error */
    uint32_t failed;     /* out: of a call on several names, the length of the path that failed; 0: the whole path. Of a copy: 0 if the
                            source failed, 1 the target, 2 one of both */
    uint64_t path, path2;
    uint64_t memory, capacity;
    int64_t number;
    int64_t times[4];    /* seconds and nanoseconds of access, then of modification */
    uint64_t key;        /* out: the mount, or on kernels before 6.8 the device */
    struct taio_stat stat;
};

/* Make the call. For workers: it may sleep. */
int64_t taio_name_run(struct taio_name *name);

/* ---- listings ---- */

#define TAIO_LIST_BYTES 32768 /* of one getdents64; at least 24 for each entry */
#define TAIO_LIST_ENTRIES 1366

/* A part of a directory. `.` and `..` are left out. */
struct taio_list {
    int32_t targets;   /* 1: also look up the types of what links point to */
    uint64_t stats;    /* address of TAIO_LIST_ENTRIES structs taio_stat: also describe each entry, links themselves; or 0 */
    uint64_t used;     /* bytes of `names` */
    uint64_t inodes[TAIO_LIST_ENTRIES];
    uint8_t types[TAIO_LIST_ENTRIES];  /* DT_*; DT_UNKNOWN was looked up */
    uint8_t target[TAIO_LIST_ENTRIES]; /* of a link: DT_* of what it points to, 0 if that is missing, 128 + errno after an error */
    char names[TAIO_LIST_BYTES];       /* one after the other, each with a null byte */
};

/* ---- the inline lane for names ----
 *
 * These run on the loop's thread, and answer only what the kernel knows without sleeping. -EAGAIN: a worker must ask. `local`: mounts whose
 * attributes never come from a server; an answer from any other mount is not used, and is reported as TAIO_NAME_UNKNOWN, with `key`. */

#define TAIO_MOUNTS 64
#define TAIO_NAME_UNKNOWN (-4096) /* no errno */
#define TAIO_NAME_SLEPT (-4097)   /* no errno: the call slept, or took long without being preempted. Its result is in `last` */

struct taio_local {
    uint32_t count;
    uint32_t first;     /* calls that will be watched, one after the other; */
    uint32_t sample;    /* of the later ones, one in so many */
    int32_t watched;    /* out: 1 if the last call was */
    uint64_t hits;      /* calls that were answered */
    uint64_t misses;
    int64_t last;       /* out: the result of the last call */
    uint64_t key;       /* out: the mount of the last call, or 0 */
    uint64_t keys[TAIO_MOUNTS];
};

/* A name as os.stat_result has it, in the order of its fields. */
struct taio_status {
    uint64_t mode, inode, device, links, uid, gid;
    int64_t size, seconds[3];  /* of access, modification and change */
    double times[3];           /* the same, with fractions */
    int64_t nanoseconds[3];    /* the same, since the epoch */
    uint64_t block_size, blocks, rdev;
};

/* Describe a name. flags: AT_SYMLINK_NOFOLLOW. resolve: more flags of openat2. `out`: NULL if it only has to exist. */
int64_t taio_inline_stat(struct taio_local *local, int dir, const char *path, int flags, int resolve, struct taio_status *out);
/* Describe an open fd. */
int64_t taio_inline_fstat(struct taio_local *local, int fd, struct taio_status *out);
/* Check permissions by the modes of faccessat2. */
int64_t taio_inline_access(struct taio_local *local, int dir, const char *path, int mode, int flags);
/* Read a link. Returns the number of bytes. */
int64_t taio_inline_readlink(struct taio_local *local, int dir, const char *path, int resolve, char *out, uint64_t capacity);
/* Open and describe a regular file for reading, or for reading and writing. Returns the fd. */
int64_t taio_inline_open(struct taio_local *local, int dir, const char *path, int flags, int resolve, struct taio_description *out);
/* Read `size` bytes at `offset` of a regular file, fewer only at its end, if they are in the page cache. Returns the number of bytes.
 * `whole`: all of it, and if it is longer than `size`, -EAGAIN. `out` has room for `size` + 1 bytes. */
int64_t taio_inline_read_file(struct taio_local *local, int dir, const char *path, int resolve, char *out, uint64_t size, int64_t offset,
                              int whole);
/* Close an fd that was opened by taio_inline_open for reading only. Returns 0; -EAGAIN, and it is still open, if closing it may take long. */
int taio_inline_close(int fd);

#endif
