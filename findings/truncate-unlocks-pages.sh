#!/bin/sh
# A file that becomes one byte shorter loses the pages that a process has locked with mlock(2).
#
# Guess: locked pages stay in memory until they are unlocked or unmapped (mlock(2)), but for those behind the new end of the file. A file of
#   64 KiB that becomes one byte shorter still has all of its 16 pages, so all stay locked, and drop_caches leaves them.
# Seen: Linux 6.18. On ext4 and xfs none of the 16 pages is locked or mapped any more ("Locked" and "Rss" in /proc/PID/smaps are 0), and after a
#   sync the next drop_caches drops all of them. A file of which each page was written and synced by itself, so that it lies in folios of one
#   page, keeps its locks. So do files on btrfs and tmpfs. That fits a split of the large folio at the cut, for which all of it is unmapped.
# Why it matters: programs lock what must not wait for the disk (databases, audio, keys). Any process that may shorten the file undoes that, and nothing
#   tells the program. The mapping is still VM_LOCKED, so a page is locked again when it is touched; but that is the wait that was to be avoided.
#
# Needs root, a C compiler, util-linux, e2fsprogs, xfsprogs and btrfs-progs. No package of any registry. Exit status 1 if the behaviour has
# changed.
set -eu

folder=$(mktemp -d)
trap 'umount "$folder"/mounted/* 2>/dev/null || true; rm -rf "$folder"' EXIT

cat > "$folder/program.c" <<'C'
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, SIZE = PAGES * PAGE };

static int count_locked(const char *mapped)
{
    char line[512], start[32];
    int here = 0, kilobytes = -1;
    FILE *maps = fopen("/proc/self/smaps", "r");
    if (maps == NULL)
        err(2, "/proc/self/smaps");
    snprintf(start, sizeof start, "%lx-", (unsigned long)mapped);
    while (kilobytes < 0 && fgets(line, sizeof line, maps) != NULL)
        if (strncmp(line, start, strlen(start)) == 0)
            here = 1;
        else if (here)
            sscanf(line, "Locked: %d kB", &kilobytes);
    fclose(maps);
    return kilobytes / 4;
}

static int count_cached(char *mapped)
{
    unsigned char pages[PAGES];
    int cached = 0;
    if (mincore(mapped, SIZE, pages) < 0)
        err(2, "mincore");
    for (int i = 0; i < PAGES; i++)
        cached += pages[i] & 1;
    return cached;
}

int main(int count, char **arguments)
{
    char page[PAGE] = {1};
    int fd = open(arguments[1], O_RDWR | O_CREAT | O_TRUNC, 0600), one_by_one = count > 2;
    if (fd < 0)
        err(2, "open");
    char *whole = calloc(PAGES, PAGE);
    if (!one_by_one && write(fd, whole, SIZE) != SIZE)
        err(2, "write");
    for (int i = 0; one_by_one && i < PAGES; i++)
        if (write(fd, page, PAGE) != PAGE || fsync(fd) < 0)
            err(2, "write");
    fsync(fd);
    char *mapped = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED || mlock(mapped, SIZE) < 0)
        err(2, "mlock");
    int before = count_locked(mapped);
    if (ftruncate(fd, SIZE - 1) < 0)
        err(2, "ftruncate");
    fsync(fd);
    int after = count_locked(mapped), drop = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (write(drop, "1", 1) != 1)
        err(2, "drop_caches");
    printf("locked %d, cut by a byte %d, cached after drop_caches %d\n", before, after, count_cached(mapped));
}
C
cc -O1 -o "$folder/program" "$folder/program.c"

echo "Linux $(uname -r | cut -d. -f1-2)"
changed=0
for kind in ext4 xfs btrfs tmpfs; do
    mkdir -p "$folder/mounted/$kind"
    if [ "$kind" = tmpfs ]; then
        mount -t tmpfs tmpfs "$folder/mounted/$kind"
    else
        truncate -s 512M "$folder/$kind.img"
        "mkfs.$kind" -q "$folder/$kind.img" >/dev/null 2>&1
        mount -o loop "$folder/$kind.img" "$folder/mounted/$kind"
    fi
    said=$("$folder/program" "$folder/mounted/$kind/file")
    echo "$kind, written at once: $said"
    case "$kind" in
    ext4 | xfs) expected=0 ;;
    *) expected=16 ;;
    esac
    [ "$said" = "locked 16, cut by a byte $expected, cached after drop_caches $expected" ] || changed=1
    said=$("$folder/program" "$folder/mounted/$kind/other" one-by-one)
    echo "$kind, written page by page: $said"
    [ "$said" = "locked 16, cut by a byte 16, cached after drop_caches 16" ] || changed=1
done
exit $changed
