/* holders ROOT [ROUNDS]: who uses the mounts on and below ROOT, by the same system calls as chrootfw's scan.
 *
 * Mount IDs and devices from the mount table; unix sockets by sock_diag; of every process its mount namespace, of each of its
 * threads root, working directory, executable and descriptors by statx, its mappings; loop devices over files inside. Prints the median of
 * the seconds of ROUNDS scans, then the pids that were found.
 */
#include "limit.h"

#include <linux/loop.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>

#define MOST 65536

static uint64_t ids[MOST], device_of[MOST], inodes[MOST], spaces[MOST];
static char space_copies[MOST];
static int id_count, device_count, inode_count, space_count;
static char marks[MOST][64];
static int found[MOST], found_count;

static int among(const uint64_t *all, int count, uint64_t wanted) {
    for (int i = 0; i < count; i++)
        if (all[i] == wanted)
            return 1;
    return 0;
}

static int is_within(const char *path, const char *root, size_t length) {
    return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == ' ' || path[length] == 0);
}

struct line {
    uint64_t id, dev;
    char *point;
};

/* Take the next line of a mount table. */
static int next_line(char **rest, struct line *line) {
    if (!**rest)
        return 0;
    unsigned major, minor;
    char *at = *rest, *end;
    line->id = strtoull(at, &end, 10);
    at = strchr(end + 1, ' ') + 1;
    major = strtoul(at, &end, 10);
    minor = strtoul(end + 1, &end, 10);
    line->dev = makedev(major, minor);
    line->point = strchr(end + 1, ' ') + 1;
    *rest = strchr(line->point, '\n') + 1;
    return 1;
}

/* The mounts' IDs, and the devices that nobody outside has. */
static void read_mounts(const char *root) {
    size_t size, length = strlen(root);
    char *table = read_whole("/proc/self/mountinfo", &size), *rest = table;
    struct line line;
    id_count = device_count = 0;
    while (next_line(&rest, &line))
        if (is_within(line.point, root, length)) {
            ids[id_count++] = line.id;
            if (!among(device_of, device_count, line.dev))
                device_of[device_count++] = line.dev;
        }
    for (rest = table; next_line(&rest, &line);)
        if (!is_within(line.point, root, length))
            for (int i = 0; i < device_count; i++)
                if (device_of[i] == line.dev)
                    device_of[i--] = device_of[--device_count];
    for (int i = 0; i < device_count; i++)
        snprintf(marks[i], sizeof marks[i], " %02x:%02x ", major(device_of[i]), minor(device_of[i]));
    free(table);
}

static void read_sockets(void) {
    struct {
        struct nlmsghdr header;
        struct unix_diag_req body;
    } ask = {
        .header = {.nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .body = {.sdiag_family = AF_UNIX, .udiag_states = -1, .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS},
    };
    static char answer[1 << 16];
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    CHECK(fd);
    CHECK(send(fd, &ask, sizeof ask, 0));
    inode_count = 0;
    for (;;) {
        int length = recv(fd, answer, sizeof answer, 0);
        CHECK(length);
        for (struct nlmsghdr *message = (void *)answer; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length)) {
            if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR) {
                close(fd);
                return;
            }
            struct unix_diag_msg *one = NLMSG_DATA(message);
            char *at = (char *)(one + 1), *end = (char *)message + message->nlmsg_len;
            while (at + sizeof(struct nlattr) <= end) {
                struct nlattr *attribute = (void *)at;
                struct unix_diag_vfs *vfs = (void *)(at + NLA_HDRLEN);
                if (attribute->nla_type == UNIX_DIAG_VFS) {
                    uint64_t dev = makedev(vfs->udiag_vfs_dev >> 20, vfs->udiag_vfs_dev & 0xfffff);
                    if (among(device_of, device_count, dev) && inode_count < MOST)
                        inodes[inode_count++] = one->udiag_ino;
                }
                at += NLA_ALIGN(attribute->nla_len);
            }
        }
    }
}

static int look(const char *path, struct statx *status) {
    return statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_MNT_ID, status);
}

static int is_ours(const char *path) {
    struct statx status;
    return look(path, &status) == 0 && among(ids, id_count, status.stx_mnt_id);
}

static int holds_a_descriptor(const char *base) {
    char path[512];
    snprintf(path, sizeof path, "%s/fd", base);
    DIR *directory = opendir(path);
    if (!directory)
        return 0;
    int held = 0;
    for (struct dirent *entry; !held && (entry = readdir(directory));) {
        struct statx status;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/fd/%s", base, entry->d_name);
        if (look(path, &status))
            continue;
        uint64_t dev = makedev(status.stx_dev_major, status.stx_dev_minor);
        held = among(ids, id_count, status.stx_mnt_id) || among(device_of, device_count, dev) ||
               (inode_count && S_ISSOCK(status.stx_mode) && among(inodes, inode_count, status.stx_ino));
    }
    closedir(directory);
    return held;
}

static int holds_by_a_thread(const char *base) {
    static const char *const links[] = {"root", "cwd", "exe"};
    char path[512];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", base, links[i]);
        if (is_ours(path))
            return 1;
    }
    return 0;
}

static int holds_a_mapping(int pid, const char *root) {
    char path[64];
    size_t length;
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    char *text = read_whole(path, &length);
    if (!text)
        return 0;
    int held = strstr(text, root) != NULL;
    for (int i = 0; !held && i < device_count; i++)
        held = strstr(text, marks[i]) != NULL;
    free(text);
    return held;
}

static int holds(int pid, const char *root) {
    static char bases[4096][64];
    char path[64];
    int count = 1;
    snprintf(bases[0], sizeof *bases, "/proc/%d", pid);
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        return 0;
    for (struct dirent *entry; count < 4096 && (entry = readdir(tasks));)
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != pid)
            snprintf(bases[count++], sizeof *bases, "/proc/%d/task/%d", pid, atoi(entry->d_name));
    closedir(tasks);
    for (int i = 0; i < count; i++)
        if (holds_by_a_thread(bases[i]))
            return 1;
    for (int i = 0; i < count; i++)
        if (holds_a_descriptor(bases[i]))
            return 1;
    return holds_a_mapping(pid, root);
}

/* Whether a mount namespace has a copy of the mounts; their IDs there are ours too. */
static int has_copies(int pid) {
    char path[64];
    size_t size;
    snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
    char *table = read_whole(path, &size), *rest = table;
    struct line line;
    int copies = 0;
    while (table && next_line(&rest, &line))
        if (among(device_of, device_count, line.dev)) {
            ids[id_count++] = line.id;
            copies = 1;
        }
    free(table);
    return copies;
}

static uint64_t space_of(const char *who) {
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%s/ns/mnt", who);
    return stat(path, &status) ? 0 : status.st_ino;
}

/* chrootfw names such loop devices as holders; here they are only looked for. */
static int loops_inside(void) {
    DIR *block = opendir("/sys/block");
    int count = 0;
    for (struct dirent *entry; block && (entry = readdir(block));) {
        char path[512], backing[4096];
        struct loop_info64 info;
        if (strncmp(entry->d_name, "loop", 4))
            continue;
        snprintf(path, sizeof path, "/sys/block/%s/loop/backing_file", entry->d_name);
        if (read_small(path, backing, sizeof backing) < 0)
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            continue;
        if (ioctl(fd, LOOP_GET_STATUS64, &info) == 0)
            count += among(device_of, device_count, info.lo_device);
        close(fd);
    }
    closedir(block);
    return count;
}

static double scan(const char *root) {
    static int pids[MOST];
    static uint64_t space[MOST];
    double began = now();
    int count = 0;
    read_mounts(root);
    read_sockets();
    spaces[0] = space_of("thread-self");
    space_copies[0] = 0;
    space_count = 1;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; count < MOST && (entry = readdir(proc));)
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9') {
            space[count] = space_of(entry->d_name);
            pids[count++] = atoi(entry->d_name);
        }
    closedir(proc);
    for (int i = 0; i < count; i++)
        if (space[i] && !among(spaces, space_count, space[i])) {
            spaces[space_count] = space[i];
            space_copies[space_count++] = has_copies(pids[i]);
        }
    found_count = 0;
    for (int i = 0; i < count; i++) {
        int held = holds(pids[i], root);
        for (int s = 0; !held && s < space_count; s++)
            held = spaces[s] == space[i] && space_copies[s];
        if (held)
            found[found_count++] = pids[i];
    }
    loops_inside();
    return now() - began;
}

static int by_size(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

int main(int argc, char **argv) {
    if (argc < 2)
        errx(2, "holders ROOT [ROUNDS]");
    int rounds = argc > 2 ? atoi(argv[2]) : 1;
    double *taken = calloc(rounds, sizeof *taken);
    for (int i = 0; i < rounds; i++)
        taken[i] = scan(argv[1]);
    qsort(taken, rounds, sizeof *taken, by_size);
    printf("%.9f", taken[rounds / 2]);
    for (int i = 0; i < found_count; i++)
        printf(" %d", found[i]);
    puts("");
}
