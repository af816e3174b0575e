// An LD_PRELOAD shim that keeps, beside a directory, what a power loss would leave of it.
//
// kill -9 keeps the page cache, so it cannot show a missing fsync. This shim copies a file's content to
// POWERLOSS_SHADOW/<inode>.data when it is synced, and a directory's entries to <inode>.dir when the
// directory is synced; a file that was never synced has no copy, and a name appears or goes away only
// with the sync of its directory. Everything below POWERLOSS_ROOT at the start counts as durable.
// POWERLOSS_SHADOW/ready appears when that is noted. Inodes seen are kept open, so that their numbers are not given out again.
//
// POWERLOSS_SWALLOW=fdatasync|directory: such syncs report success and do nothing (a planted defect).
// POWERLOSS_FAIL_AFTER=n: every fdatasync after the first n fails with EIO.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { INODES_MAX = 1 << 15 };

// What was written to an inode since its last sync.
struct inode {
    ino_t number;
    off_t dirty_start, dirty_end;
    off_t cut;  // the lowest truncation, below 0 without one
    int is_synced;
};

static struct inode inodes[INODES_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root, *shadow, *swallow;
static long fail_after = -1;
static dev_t device;

static void die(const char *what) {
    fprintf(stderr, "powerloss shim: %s: %s\n", what, strerror(errno));
    abort();
}

// The entry of an inode; NULL when the path has just gone away.
static struct inode *find(ino_t number, const char *path) {
    for (size_t at = number % INODES_MAX, tries = 0; tries < INODES_MAX; tries++) {
        struct inode *inode = &inodes[(at + tries) % INODES_MAX];
        if (inode->number == number) return inode;
        if (inode->number == 0) {
            if (open(path, O_PATH | O_CLOEXEC) < 0) {
                if (errno == ENOENT) return NULL;
                die("open to pin an inode");
            }
            inode->number = number;
            inode->cut = -1;
            return inode;
        }
    }
    die("too many inodes");
    return NULL;
}

static void copy(int from, int to, off_t start, off_t end) {
    static char buffer[1 << 16];
    while (start < end) {
        off_t data = lseek(from, start, SEEK_DATA);
        if (data < 0 || data >= end) return;
        off_t hole = lseek(from, data, SEEK_HOLE);
        if (hole < 0 || hole > end) hole = end;
        for (start = data; start < hole;) {
            size_t size = hole - start < (off_t)sizeof buffer ? hole - start : sizeof buffer;
            ssize_t got = pread(from, buffer, size, start);
            if (got <= 0) return;
            for (ssize_t done = 0; done < got;) {
                // Through the system call: pwrite is ours.
                ssize_t put = syscall(SYS_pwrite64, to, buffer + done, got - done, start + done);
                if (put <= 0) die("write of a shadow");
                done += put;
            }
            start += got;
        }
    }
}

static void sync_file(const char *path, struct stat *stat) {
    struct inode *inode = find(stat->st_ino, path);
    if (!inode) return;
    char name[4096];
    snprintf(name, sizeof name, "%s/%lu.data", shadow, (unsigned long)stat->st_ino);
    int from = open(path, O_RDONLY | O_CLOEXEC);
    int to = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (from < 0 || to < 0) die("open of a shadow");
    if (inode->cut >= 0 && syscall(SYS_ftruncate, to, inode->cut)) die("truncation of a shadow");
    if (inode->is_synced)
        copy(from, to, inode->dirty_start,
             inode->dirty_end < stat->st_size ? inode->dirty_end : stat->st_size);
    else
        copy(from, to, 0, stat->st_size);
    if (syscall(SYS_ftruncate, to, stat->st_size) != 0) die("truncation of a shadow");
    inode->is_synced = 1;
    inode->dirty_start = inode->dirty_end = 0;
    inode->cut = -1;
    close(from);
    close(to);
}

static void sync_directory(const char *path, struct stat *stat, int recurse) {
    find(stat->st_ino, path);
    char name[4096], part[4096], entry_path[8192];
    snprintf(name, sizeof name, "%s/%lu.dir", shadow, (unsigned long)stat->st_ino);
    snprintf(part, sizeof part, "%s/part", shadow);
    DIR *directory = opendir(path);
    FILE *list = fopen(part, "we");
    if (!directory || !list) die("list of a directory");
    for (struct dirent *entry; (entry = readdir(directory));) {
        struct stat child;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(dirfd(directory), entry->d_name, &child, AT_SYMLINK_NOFOLLOW)) continue;
        snprintf(entry_path, sizeof entry_path, "%s/%s", path, entry->d_name);
        if (!find(child.st_ino, entry_path)) continue;
        fprintf(list, "%c %lu %s\n", S_ISDIR(child.st_mode) ? 'd' : 'f',
                (unsigned long)child.st_ino, entry->d_name);
    }
    if (fclose(list) || rename(part, name)) die("list of a directory");
    if (recurse) {
        rewinddir(directory);
        for (struct dirent *entry; (entry = readdir(directory));) {
            struct stat child;
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            snprintf(entry_path, sizeof entry_path, "%s/%s", path, entry->d_name);
            if (lstat(entry_path, &child)) continue;
            if (S_ISDIR(child.st_mode)) sync_directory(strdup(entry_path), &child, 1);
            if (S_ISREG(child.st_mode)) sync_file(entry_path, &child);
        }
    }
    closedir(directory);
}

__attribute__((constructor)) static void start(void) {
    root = getenv("POWERLOSS_ROOT");
    shadow = getenv("POWERLOSS_SHADOW");
    swallow = getenv("POWERLOSS_SWALLOW");
    if (!root || !shadow) {
        root = NULL;
        return;
    }
    if (getenv("POWERLOSS_FAIL_AFTER")) fail_after = atol(getenv("POWERLOSS_FAIL_AFTER"));
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    struct stat stat_root;
    if (stat(root, &stat_root)) die("POWERLOSS_ROOT");
    device = stat_root.st_dev;
    sync_directory(root, &stat_root, 1);
    char ready[4096];
    snprintf(ready, sizeof ready, "%s/ready", shadow);
    if (open(ready, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0) die("note that the shim is ready");
}

static int is_swallowed(const char *kind) { return swallow && strcmp(swallow, kind) == 0; }

static int sync_descriptor(int descriptor, const char *kind) {
    static int (*real)(int);
    struct stat stat;
    char path[64];
    if (!root || fstat(descriptor, &stat) || stat.st_dev != device) {
        if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
        return real(descriptor);
    }
    int is_directory = S_ISDIR(stat.st_mode);
    if (is_swallowed(is_directory ? "directory" : kind)) return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    pthread_mutex_lock(&lock);
    if (strcmp(kind, "fdatasync") == 0 && fail_after >= 0 && fail_after-- == 0) {
        fail_after = 0;
        pthread_mutex_unlock(&lock);
        errno = EIO;
        return -1;
    }
    // The size may have grown since the first look.
    if (fstat(descriptor, &stat)) die("fstat");
    if (is_directory)
        sync_directory(path, &stat, 0);
    else
        sync_file(path, &stat);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int descriptor) { return sync_descriptor(descriptor, "fsync"); }

int fdatasync(int descriptor) { return sync_descriptor(descriptor, "fdatasync"); }

// Notes that `size` bytes were written that end at `end`, or at the descriptor's position if negative.
static void written(int descriptor, ssize_t size, off_t end) {
    struct stat stat;
    char path[64];
    int kept = errno;
    if (root && size > 0 && !fstat(descriptor, &stat) && S_ISREG(stat.st_mode) &&
        stat.st_dev == device) {
        if (end < 0) end = lseek(descriptor, 0, SEEK_CUR);
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
        pthread_mutex_lock(&lock);
        struct inode *inode = find(stat.st_ino, path);
        off_t first = end - size;
        if (inode->dirty_start == inode->dirty_end) inode->dirty_start = first;
        if (first < inode->dirty_start) inode->dirty_start = first;
        if (end > inode->dirty_end) inode->dirty_end = end;
        pthread_mutex_unlock(&lock);
    }
    errno = kept;
}

#define REAL(result, name, ...)                                            \
    static result (*real)(__VA_ARGS__);                                    \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t)
    ssize_t done = real(descriptor, bytes, size);
    written(descriptor, done, -1);
    return done;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int)
    ssize_t done = real(descriptor, parts, count);
    written(descriptor, done, -1);
    return done;
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)
    ssize_t done = real(descriptor, bytes, size, offset);
    written(descriptor, done, offset + done);
    return done;
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t offset) {
    return pwrite64(descriptor, bytes, size, offset);
}

// What lies beyond a cut is stale in the copy, but goes only with the next sync.
int ftruncate64(int descriptor, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t)
    int outcome = real(descriptor, size);
    struct stat stat;
    char path[64];
    if (root && outcome == 0 && !fstat(descriptor, &stat) && stat.st_dev == device) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
        pthread_mutex_lock(&lock);
        struct inode *inode = find(stat.st_ino, path);
        if (inode->cut < 0 || size < inode->cut) inode->cut = size;
        if (inode->dirty_start == inode->dirty_end || size < inode->dirty_start)
            inode->dirty_start = size;
        inode->dirty_end = 1L << 62;
        pthread_mutex_unlock(&lock);
    }
    return outcome;
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }
