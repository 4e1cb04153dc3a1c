// Makes one system call of a program fail: the SHIM_AT-th of the kind SHIM_CALL, with the error SHIM_ERRNO, or by
// writing only half where that is 0. Loaded with LD_PRELOAD.
//
// Writes and syncs count for regular files only: what a program tells itself through pipes is not a disk's to
// fail. After the one that fails all go well again, as after a fault that passes.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long counted;

// Whether this call is the one that fails.
static int is_it(const char *call) {
    const char *wanted = getenv("SHIM_CALL");
    const char *at = getenv("SHIM_AT");
    int is = wanted && at && strcmp(wanted, call) == 0 && atomic_fetch_add(&counted, 1) + 1 == atol(at);
    if (is && getenv("SHIM_MARK")) {
        // Without the functions that are replaced here.
        syscall(SYS_mkdirat, AT_FDCWD, getenv("SHIM_MARK"), 0700);
    }
    return is;
}

static int error(void) {
    const char *number = getenv("SHIM_ERRNO");
    return number ? atoi(number) : EIO;
}

static int is_file(int fd) {
    struct stat about;
    int before = errno;
    int is = fstat(fd, &about) == 0 && S_ISREG(about.st_mode);
    errno = before;
    return is;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t count) {
    if (is_file(fd) && is_it("write")) {
        if (error()) {
            errno = error();
            return -1;
        }
        return REAL(write)(fd, bytes, count > 1 ? count / 2 : count);
    }
    return REAL(write)(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    if (is_file(fd) && is_it("write")) {
        if (error()) {
            errno = error();
            return -1;
        }
        return REAL(pwrite64)(fd, bytes, count > 1 ? count / 2 : count, at);
    }
    return REAL(pwrite64)(fd, bytes, count, at);
}

int fsync(int fd) {
    if (is_it("sync")) {
        errno = error();
        return -1;
    }
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    if (is_it("sync")) {
        errno = error();
        return -1;
    }
    return REAL(fdatasync)(fd);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    if (is_it("open")) {
        errno = error();
        return -1;
    }
    return REAL(open64)(path, flags, mode);
}

int rename(const char *from, const char *to) {
    if (is_it("rename")) {
        errno = error();
        return -1;
    }
    return REAL(rename)(from, to);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    if (is_it("accept")) {
        errno = error();
        return -1;
    }
    return REAL(accept4)(fd, address, length, flags);
}
