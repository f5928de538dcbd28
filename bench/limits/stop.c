/* stop PLACE CGROUP SCRIPT GRACE: the least that a stop of chrootfw has to do, of what start.c made.
 *
 * SCRIPT stop in the cgroup, TERM to who still lives, at most GRACE seconds until the cgroup is empty, else cgroup.kill; the mounts from the
 * table, the last first, until the loop device is free; the cgroup and the directories. Prints the seconds of all, and
 * those from the end of the last process on.
 */
#include "limit.h"

#include <linux/loop.h>

static int is_populated(int events) {
    char text[256];
    ssize_t length = pread(events, text, sizeof text - 1, 0);
    CHECK(length);
    text[length] = 0;
    return strstr(text, "populated 1") != NULL;
}

/* Until the cgroup is empty, or the time is over; whether it is empty. */
static int emptied(int events, double until) {
    while (is_populated(events)) {
        double left = until - now();
        if (left <= 0)
            return 0;
        struct pollfd wait = {.fd = events, .events = POLLPRI};
        struct timespec most = {.tv_sec = left, .tv_nsec = (left - (long)left) * 1e9};
        CHECK(ppoll(&wait, 1, &most, NULL));
    }
    return 1;
}

static void term_all(const char *cgroup) {
    char path[4096];
    size_t length;
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    char *pids = read_whole(path, &length), *rest;
    if (!pids)
        err(1, "%s", path);
    for (char *word = strtok_r(pids, "\n", &rest); word; word = strtok_r(NULL, "\n", &rest)) {
        int pidfd = syscall(SYS_pidfd_open, atoi(word), 0);
        if (pidfd < 0)
            continue;
        syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
        close(pidfd);
    }
    free(pids);
}

/* The mount points on and below ROOT, in the table's order; their number. */
static int mounts_below(const char *root, char *table, char **points, int most) {
    size_t length = strlen(root);
    int count = 0;
    char *rest;
    for (char *line = strtok_r(table, "\n", &rest); line && count < most; line = strtok_r(NULL, "\n", &rest)) {
        char *point = line;
        for (int field = 0; field < 4; field++)
            point = strchr(point, ' ') + 1;
        char *end = strchr(point, ' ');
        *end = 0;
        if (strncmp(point, root, length) == 0 && (point[length] == 0 || point[length] == '/'))
            points[count++] = point;
        else
            *end = ' ';
    }
    return count;
}

int main(int argc, char **argv) {
    if (argc != 5)
        errx(2, "stop PLACE CGROUP SCRIPT GRACE");
    const char *place = argv[1], *cgroup = argv[2], *script = argv[3];
    double grace = atof(argv[4]), began = now();

    char root[4096], path[4096];
    snprintf(root, sizeof root, "%s/root", place);
    run_script(root, cgroup, script, "stop");

    snprintf(path, sizeof path, "%s/cgroup.events", cgroup);
    int events = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(events);
    if (is_populated(events)) {
        term_all(cgroup);
        if (!emptied(events, now() + grace)) {
            snprintf(path, sizeof path, "%s/cgroup.kill", cgroup);
            int kill_fd = open(path, O_WRONLY | O_CLOEXEC);
            CHECK(kill_fd);
            CHECK(write(kill_fd, "1", 1));
            close(kill_fd);
            emptied(events, now() + 10);
        }
    }
    close(events);
    double last_exit = now();

    static char *points[100000];
    size_t length;
    char *table = read_whole("/proc/self/mountinfo", &length), device[64] = "";
    char *found = strstr(table, root);
    if (!found || sscanf(strstr(found, " - "), " - %*s %63s", device) != 1)
        errx(1, "%s is not mounted", root);
    int count = mounts_below(root, table, points, sizeof points / sizeof *points);
    while (count--)
        CHECK(umount2(points[count], 8 /* UMOUNT_NOFOLLOW */));
    struct loop_info64 info;
    int loop = -1;
    do {
        if (loop >= 0)
            close(loop);
        loop = open(device, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        CHECK(loop);
    } while (ioctl(loop, LOOP_GET_STATUS64, &info) == 0);
    close(loop);
    CHECK(rmdir(root));
    CHECK(rmdir(place));
    snprintf(path, sizeof path, "%s", cgroup);
    for (int up = 0; up < 3; up++) {
        if (rmdir(path) && errno != EBUSY && errno != ENOTEMPTY)
            err(1, "%s", path);
        *strrchr(path, '/') = 0;
    }
    double ended = now();
    printf("%.9f %.9f\n", ended - began, ended - last_exit);
}
