/* Memory of callers that may belong to a mapped file. Workers call all of this but taio_memory_query: any of it may sleep.
 *
 * How the kernel works. A page of a mapped file is read from its disk when it is first touched. If another program has made the file shorter,
 * the page is gone, and touching it is SIGBUS. But a copy that the kernel makes fails with EFAULT instead.
 *
 * What we do about it. The kernel makes our copies from and to such memory: process_vm_readv and process_vm_writev take any process's memory,
 * also our own. They cost two to four times a memcpy (1 MiB: 40 to 78 us instead of 22), so anonymous memory is copied by memcpy. */
#include "native.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Copy through a pipe, where process_vm_readv is missing or forbidden (a sandbox's filter). The pages of either side may be gone: EFAULT. */
static int copy_through_pipe(char *to, const char *from, uint64_t count)
{
    int ends[2], error = 0;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    while (count > 0 && error == 0) {
        size_t part = count < PIPE_BUF ? count : PIPE_BUF; /* an empty pipe takes that much without waiting */
        ssize_t n = write(ends[1], from, part);
        if (n > 0)
            n = read(ends[0], to, (size_t)n);
        if (n < 0)
            error = -errno; /* EINTR cannot be: a worker blocks signals */
        else if (n == 0)
            error = -EIO;
        else {
            to += n;
            from += n;
            count -= (uint64_t)n;
        }
    }
    close(ends[0]);
    close(ends[1]);
    return error;
}

int taio_copy(void *to, const void *from, uint64_t count, int outward)
{
    char *target = to;
    const char *source = from;
    pid_t self = (pid_t)syscall(SYS_gettid); /* not getpid: the main thread may have ended */
    while (count > 0) {
        struct iovec ours = {outward ? (char *)source : target, count}, theirs = {outward ? target : (char *)source, count};
        ssize_t n = outward ? process_vm_writev(self, &ours, 1, &theirs, 1, 0) : process_vm_readv(self, &ours, 1, &theirs, 1, 0);
        if (n < 0 && (errno == EFAULT || errno == ENOMEM))
            return -errno;
        if (n <= 0)
            return copy_through_pipe(target, source, count);
        target += n;
        source += n;
        count -= (uint64_t)n;
    }
    return 0;
}

int64_t taio_gather(void *to, const struct iovec *vector, uint64_t parts)
{
    int64_t copied = 0;
    for (uint64_t i = 0; i < parts; i++) {
        int error = taio_copy((char *)to + copied, vector[i].iov_base, vector[i].iov_len, 0);
        if (error != 0)
            return error;
        copied += (int64_t)vector[i].iov_len;
    }
    return copied;
}

/* Return whether a line of /proc/self/maps, from its inode number on, belongs to anonymous memory. Shared anonymous memory and huge pages have
 * an inode too, of a filesystem that only the kernel sees. */
static int is_anonymous(uint64_t inode, const char *name)
{
    return inode == 0 || strncmp(name, "/dev/zero (deleted)", 19) == 0 || strncmp(name, "/anon_hugepage (deleted)", 24) == 0;
}

/* Linux 6.11, newer than the oldest headers we build with. The values are ABI, from include/uapi/linux/fs.h. */
struct mapping_query {
    uint64_t size, flags, address;
    uint64_t start, end, protection, page_size, offset, inode;
    uint32_t device_major, device_minor, name_size, build_id_size;
    uint64_t name, build_id;
};
#define MAPPING_QUERY _IOWR('f', 17, struct mapping_query)

int taio_memory_query(uint64_t memory, uint64_t length)
{
    char name[64]; /* a longer one is that of a file */
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), mapped = 0;
    if (maps < 0)
        return -errno;
    for (uint64_t at = memory; at < memory + length && mapped == 0;) {
        struct mapping_query query = {.size = sizeof query, .address = at, .name = (uint64_t)(uintptr_t)name, .name_size = sizeof name};
        if (ioctl(maps, MAPPING_QUERY, &query) < 0)
            mapped = errno == ENAMETOOLONG ? 1 : -errno;
        else
            mapped = !is_anonymous(query.inode, query.name_size > 0 ? name : "");
        at = query.end;
    }
    close(maps);
    return mapped;
}

int taio_memory_is_mapped(uint64_t memory, uint64_t length)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char *line = NULL;
    size_t capacity = 0;
    uint64_t at = memory, end = memory + length;
    int mapped = 0;
    if (maps == NULL)
        return 1; /* not known, so be careful */
    while (at < end && !mapped && getline(&line, &capacity, maps) > 0) {
        unsigned long start, stop, inode;
        int name = 0;
        if (sscanf(line, "%lx-%lx %*4s %*x %*x:%*x %lu %n", &start, &stop, &inode, &name) < 3 || stop <= at)
            continue;
        if (start > at)
            break; /* a hole */
        mapped = !is_anonymous(inode, line + name);
        at = stop;
    }
    free(line);
    fclose(maps);
    return mapped ? 1 : at < end ? -EFAULT : 0;
}
