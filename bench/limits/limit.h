/* What the limits share: a clock, an end with a message, a child in a cgroup.
 *
 * Each program does with as few system calls as the result allows what a verb of chrootfw does, measures itself and
 * prints seconds. They run as root, in the bench's private namespaces and directories only, and check nothing that
 * cannot happen there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Paths of the bench and of /proc are short. */
#pragma GCC diagnostic ignored "-Wformat-truncation"

#define CHECK(call) ((call) < 0 ? err(1, "%s:%d: %s", __FILE__, __LINE__, #call) : (void)0)

int umount2(const char *target, int flags);

/* CLOCK_MONOTONIC, which time.monotonic() of Python reads too. */
static inline double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

/* One read of a small file of the kernel; its length, -1 when it is gone. */
static inline ssize_t read_small(const char *path, char *buffer, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, buffer, size - 1);
    close(fd);
    if (length >= 0)
        buffer[length] = 0;
    return length;
}

/* The whole of a file of the kernel, in memory of its own that the caller frees; NULL when it is gone. */
static inline char *read_whole(const char *path, size_t *length) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    size_t size = 1 << 16;
    char *text = malloc(size);
    ssize_t got;
    for (*length = 0; (got = read(fd, text + *length, size - *length - 1)) > 0;) {
        *length += got;
        if (size - *length < 1 << 12)
            text = realloc(text, size *= 2);
    }
    close(fd);
    text[*length] = 0;
    return text;
}

/* Run SCRIPT ACTION in the root, in the cgroup, as chrootfw does; wait for it alone, and take what it prints. */
static inline void run_script(const char *root, const char *cgroup, const char *script, const char *action) {
    int out[2], pidfd = -1;
    CHECK(pipe2(out, O_CLOEXEC));
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int cgroup_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(null);
    CHECK(root_fd);
    CHECK(cgroup_fd);
    struct clone_args how = {
        .flags = CLONE_PIDFD | CLONE_INTO_CGROUP,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = cgroup_fd,
    };
    long pid = syscall(SYS_clone3, &how, sizeof how);
    CHECK(pid);
    if (pid == 0) {
        char *argv[] = {(char *)script, (char *)action, NULL};
        char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
        setsid();
        dup2(null, 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        if (fchdir(root_fd) || chroot(".") || chdir("/"))
            _exit(126);
        umask(022);
        execve(script, argv, env);
        _exit(127);
    }
    close(root_fd);
    close(cgroup_fd);
    close(null);
    struct pollfd wait[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = out[0], .events = POLLIN}};
    char said[1 << 12];
    while (poll(wait, 2, -1) > 0 && !wait[0].revents)
        CHECK(read(out[0], said, sizeof said));
    siginfo_t how_ended;
    CHECK(waitid(P_PIDFD, pidfd, &how_ended, WEXITED));
    if (how_ended.si_code != CLD_EXITED || how_ended.si_status != 0)
        errx(1, "%s %s: status %d", script, action, how_ended.si_status);
    close(pidfd);
    close(out[0]);
    close(out[1]);
}
