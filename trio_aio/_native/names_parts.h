/* What the files of the calls on names share: names.c, names_tree.c, names_whole.c, names_copy.c and
 * names_inline.c. */
#ifndef TRIO_AIO_NAMES_PARTS_H
#define TRIO_AIO_NAMES_PARTS_H

/* Call statx(2), never a fallback of the C library that may sleep. `key`: as in struct taio_name, or NULL. Returns 0, or -errno. */
int taio_statx(int dir, const char *path, int flags, struct taio_stat *out, uint64_t *key);
/* Find out on which mount the file of `fd` lies, and ask for no attribute: some network filesystems wait for writes before they answer. */
int taio_mount_of(int fd, uint64_t *key);
/* Call openat2(2) with O_CLOEXEC. Returns an fd, or -errno. */
int taio_openat2(int dir, const char *path, int flags, unsigned mode, uint64_t resolve);
/* Open a path that must not leave `dir`; -EXDEV if it does. Without openat2, links are ELOOP. Returns an fd, or -errno. */
int taio_open_beneath(int dir, const char *path, int flags, unsigned mode);
/* Open the parent of a path that must not leave `dir`. `last`: the last component, which the caller frees. Returns an fd, or -errno. */
int taio_open_parent(int dir, const char *path, char **last);

/* Open a path that may be longer than PATH_MAX. `no_links`: no component may be a link; ELOOP. Returns an fd, or -errno. */
int taio_open_long(int dir, const char *path, int flags, int no_links);

int64_t taio_name_list(struct taio_name *n);
int64_t taio_name_mkdir(struct taio_name *n, int dir, const char *path);
int64_t taio_name_removedirs(int dir, const char *path);
int64_t taio_name_renames(struct taio_name *n);
int64_t taio_name_realpath(struct taio_name *n);
int64_t taio_name_write(struct taio_name *n, const char *path);
int64_t taio_name_read(struct taio_name *n, const char *path);
/* Open a regular file or a block device, and nothing else; `n->stat` describes it, or what it is instead. Returns an fd, or -errno. */
int taio_open_file(struct taio_name *n, const char *path, int flags);
int64_t taio_name_temporary(struct taio_name *n, const char *path);
int64_t taio_name_copy(struct taio_name *n, const char *path, const char *path2);
int64_t taio_name_discard(struct taio_name *n);
int64_t taio_name_metadata(struct taio_name *n, const char *path, const char *path2);
int64_t taio_name_unlink_many(struct taio_name *n, const char *path);
int64_t taio_name_read_many(struct taio_name *n);

/* Prepare a new file beside `path`. `follow`: a link is resolved, and what it points to will be replaced. `exclusive`: -EEXIST if there is
 * anything at `path`, a link too. Returns 0, or -errno. */
int taio_new_begin(struct taio_new *file, int dir, const char *path, unsigned mode, int follow, int beneath, int exclusive);
/* Make a link that points to `target`, or, if that is NULL, a FIFO, a socket or a device `like` another, under a temporary name beside `path`.
 * `exclusive`: as above. Returns 0, or -errno. */
int taio_new_special(struct taio_new *file, int dir, const char *path, const struct taio_stat *like, const char *target, int exclusive);
/* Give it its name. Returns 0, or -errno. */
int taio_new_publish(struct taio_new *file, int exclusive, int durable);
/* Close it, and remove its temporary name. Without a name it is gone then. */
void taio_new_end(struct taio_new *file);

#endif
