/* Makes the n-th file operation under a folder fail, once or for good, or ends the process there.

   Loaded with LD_PRELOAD. filefaults_arm(folder, n, kind) begins to count; filefaults_count(name) says how many there
   were of a kind of operation, or in all ("").

   Or, for a process that knows nothing of it: the disk is full under $FILEFAULTS_FOLDER while $FILEFAULTS_FULL exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* FULL: no space from there on, though deleting works. SHORT and TORN do half a write, and count writes alone. */
enum { NONE, NO_SPACE, IO_ERROR, SHORT, FULL, KILL, TORN };
enum { TAKES_NOTHING, TAKES_SPACE, WRITES };

static char folder[PATH_MAX];
static long target, total;
static int kind;
static struct { const char *name; long count; } names[16];

void filefaults_arm(const char *path, long n, int what) {
    strncpy(folder, path, sizeof folder - 1);
    target = n, kind = what, total = 0;
    memset(names, 0, sizeof names);
}

static const char *gate;

__attribute__((constructor)) static void begin(void) {
    gate = getenv("FILEFAULTS_FULL");
    if (gate) filefaults_arm(getenv("FILEFAULTS_FOLDER"), 0, FULL);
}

long filefaults_count(const char *name) {
    if (!*name) return total;
    for (int i = 0; i < 16 && names[i].name; i++)
        if (!strcmp(names[i].name, name)) return names[i].count;
    return 0;
}

/* Whether a path, relative to an open folder or the current one, or that of a file number, is meant. */
static int meant(int at, const char *path) {
    char link[64], whole[PATH_MAX];
    if (!*folder) return 0;
    if (path && (*path == '/' || at == AT_FDCWD)) return !strncmp(path, folder, strlen(folder));
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    return !strncmp(whole, folder, strlen(folder));
}

/* Counts an operation. Returns 1 where it is to fail, 2 where only half of it is to be done. */
static int strike(int at, const char *path, const char *name, int needs) {
    if (((kind == SHORT || kind == TORN) && needs != WRITES) || !meant(at, path)) return 0;
    long now = __atomic_add_fetch(&total, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 16; i++) {
        if (!names[i].name) names[i].name = name;
        if (!strcmp(names[i].name, name)) { names[i].count++; break; }
    }
    int full = gate ? access(gate, F_OK) == 0 : target && now >= target;
    if (kind == FULL && full && needs) { errno = ENOSPC; return 1; }
    if (now != target) return 0;
    switch (kind) {
        case NO_SPACE: errno = ENOSPC; return 1;
        case IO_ERROR: errno = EIO; return 1;
        case SHORT: case TORN: return 2;
        case KILL: kill(getpid(), SIGKILL);
    }
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_OR(at, path, call, needs, ...) \
    return strike(at, path, #call, needs) == 1 ? -1 : REAL(call)(__VA_ARGS__)
#define NEEDS(flags) ((flags) & O_CREAT ? TAKES_SPACE : TAKES_NOTHING)
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    FAIL_OR(AT_FDCWD, path, open, NEEDS(flags), path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    FAIL_OR(AT_FDCWD, path, open64, NEEDS(flags), path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE(flags)
    FAIL_OR(at, path, openat, NEEDS(flags), at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE(flags)
    FAIL_OR(at, path, openat64, NEEDS(flags), at, path, flags, mode);
}
int creat(const char *path, mode_t mode) {
    FAIL_OR(AT_FDCWD, path, creat, TAKES_SPACE, path, mode);
}
int fsync(int file) {
    FAIL_OR(file, NULL, fsync, TAKES_SPACE, file);
}
int fdatasync(int file) {
    FAIL_OR(file, NULL, fdatasync, TAKES_SPACE, file);
}
int ftruncate(int file, off_t size) {
    FAIL_OR(file, NULL, ftruncate, TAKES_SPACE, file, size);
}
int ftruncate64(int file, off64_t size) {
    FAIL_OR(file, NULL, ftruncate64, TAKES_SPACE, file, size);
}
int rename(const char *from, const char *to) {
    FAIL_OR(AT_FDCWD, to, rename, TAKES_NOTHING, from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    FAIL_OR(b, to, renameat, TAKES_NOTHING, a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    FAIL_OR(b, to, renameat2, TAKES_NOTHING, a, from, b, to, flags);
}
int mkdir(const char *path, mode_t mode) {
    FAIL_OR(AT_FDCWD, path, mkdir, TAKES_SPACE, path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    FAIL_OR(at, path, mkdirat, TAKES_SPACE, at, path, mode);
}
int unlink(const char *path) {
    FAIL_OR(AT_FDCWD, path, unlink, TAKES_NOTHING, path);
}
int unlinkat(int at, const char *path, int flags) {
    FAIL_OR(at, path, unlinkat, TAKES_NOTHING, at, path, flags);
}
int rmdir(const char *path) {
    FAIL_OR(AT_FDCWD, path, rmdir, TAKES_NOTHING, path);
}

/* Half of a write, after which the process may have to end. */
static ssize_t half(ssize_t done) {
    if (kind == TORN) kill(getpid(), SIGKILL);
    return done;
}

ssize_t write(int file, const void *data, size_t size) {
    int struck = strike(file, NULL, "write", WRITES);
    if (struck == 2) return half(REAL(write)(file, data, size / 2));
    return struck ? -1 : REAL(write)(file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
    int struck = strike(file, NULL, "pwrite64", WRITES);
    if (struck == 2) return half(REAL(pwrite64)(file, data, size / 2, offset));
    return struck ? -1 : REAL(pwrite64)(file, data, size, offset);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    int struck = strike(file, NULL, "writev", WRITES);
    if (struck == 2) return half(REAL(writev)(file, parts, (count + 1) / 2));
    return struck ? -1 : REAL(writev)(file, parts, count);
}
