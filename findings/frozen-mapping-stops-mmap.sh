#!/bin/sh
# A store into a mapped file of a frozen filesystem keeps every other thread of the process from mapping memory.
#
# Guess: the store waits for the thaw, as every write does, but only in its own thread. Page faults take the lock of one mapping (per-VMA
#   locks, Linux 6.4), and read(2) into that memory faults in the same way. So mmap(2) of something else returns at once.
# Seen: Linux 6.18, ext4: mmap of anonymous memory, which has nothing to do with any file, waits until the thaw too, beside a plain store and
#   beside read(2). xfs and btrfs: the same beside read(2). A first touch of anonymous memory that was mapped before does not wait.
#   /proc/PID/task/TID/stack: the one thread sleeps in ext4_page_mkwrite, below do_fault; the other in vm_mmap_pgoff.
# Why it matters: malloc, a new thread's stack and an interpreter's arenas are mmap. A snapshot of the filesystem stops the threads that never
#   touch it.
#
# Needs root, a C compiler, util-linux and e2fsprogs. No package of any registry. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'umount "$folder/mounted" 2>/dev/null || true; rm -rf "$folder"' EXIT
truncate -s 64M "$folder/image"
mkfs.ext4 -q "$folder/image"
mkdir "$folder/mounted"
mount -o loop "$folder/image" "$folder/mounted"

cat > "$folder/program.c" <<'C'
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static char *mapped;
static int zero, by_read;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void *store(void *ended)
{
    if (!by_read)
        *(volatile char *)mapped = 1;
    else if (read(zero, mapped, 1) != 1)
        err(2, "read");
    *(double *)ended = now();
    return NULL;
}

static void *thaw(void *folder)
{
    usleep(500000);
    return ioctl(*(int *)folder, FITHAW, 0) == 0 ? NULL : folder;
}

int main(int count, char **arguments)
{
    int folder = open(arguments[1], O_RDONLY), changed = 0;
    char name[4096];
    if (count != 2 || folder < 0)
        err(2, "%s", arguments[1]);
    zero = open("/dev/zero", O_RDONLY);
    for (by_read = 0; by_read < 2; by_read++) {
        snprintf(name, sizeof name, "%s/%d", arguments[1], by_read);
        int file = open(name, O_RDWR | O_CREAT, 0600);
        if (file < 0 || write(file, "contents", 8) != 8 || fsync(file) != 0)
            err(2, "%s", name);
        mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        char *before = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        before[0] = 1;
        pthread_t storing, thawing;
        double stored, start, touched, made;
        if (ioctl(folder, FIFREEZE, 0) != 0)
            err(2, "FIFREEZE");
        pthread_create(&thawing, NULL, thaw, &folder);
        start = now();
        pthread_create(&storing, NULL, store, &stored);
        usleep(100000);
        touched = now();
        before[1 << 19] = 1;
        touched = now() - touched;
        made = now();
        if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
            err(2, "mmap");
        made = now() - made;
        pthread_join(storing, NULL);
        pthread_join(thawing, NULL);
        printf("%s waited %.0f ms; beside it a touch of older memory %.1f ms, mmap of new memory %.0f ms\n",
               by_read ? "read(2) into the mapping" : "a store into the mapping", stored - start, touched, made);
        changed |= stored - start < 300 || touched > 100 || made < 200;
        close(file);
        munmap(mapped, 4096);
    }
    return changed;
}
C
cc -O1 -Wall -pthread -o "$folder/program" "$folder/program.c"
uname -sr
"$folder/program" "$folder/mounted"
