/* start IMAGE PLACE CGROUP SCRIPT: the least that a start of chrootfw has to do.
 *
 * A loop device over IMAGE (ext4), the mounts of chrootfw's default plugins, all attached on PLACE/root by one move_mount, a cgroup (made with
 * the two directories above it), SCRIPT start in there. Prints the seconds.
 */
#include "limit.h"

#include <linux/loop.h>

static int loop_over(const char *image, char *device, size_t size) {
    int image_fd = open(image, O_RDWR | O_CLOEXEC);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    CHECK(image_fd);
    CHECK(control);
    struct loop_config how = {.fd = image_fd, .info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO};
    for (;;) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        CHECK(number);
        snprintf(device, size, "/dev/loop%d", number);
        int fd = open(device, O_RDWR | O_CLOEXEC);
        CHECK(fd);
        if (ioctl(fd, LOOP_CONFIGURE, &how) == 0) {
            close(image_fd);
            close(control);
            return fd;
        }
        if (errno != EBUSY)
            err(1, "LOOP_CONFIGURE");
        close(fd);
    }
}

/* A detached mount. OPTIONS: key, value, …, NULL; a value of NULL is a flag. */
static int new_mount(const char *type, unsigned attributes, const char *const *options, int count) {
    int context = syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    CHECK(context);
    for (int i = 0; i < count; i += 2)
        CHECK(syscall(SYS_fsconfig, context, options[i + 1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[i],
                      options[i + 1], 0));
    CHECK(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    int fd = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
    CHECK(fd);
    close(context);
    return fd;
}

#define NEW(type, attributes, ...)                                                                                     \
    ({                                                                                                                 \
        const char *options[] = {"source", type, __VA_ARGS__};                                                         \
        new_mount(type, attributes, options, sizeof options / sizeof *options);                                        \
    })

static void attach(int fd, int root, const char *target) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    int at = syscall(SYS_openat2, root, target, &how, sizeof how);
    CHECK(at);
    CHECK(syscall(SYS_move_mount, fd, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    close(at);
    close(fd);
}

static void directory(int at, const char *name, mode_t mode) {
    CHECK(mkdirat(at, name, mode));
    CHECK(fchmodat(at, name, mode, 0));
}

static void fill_dev(int dev) {
    static const struct {
        const char *name;
        int minor, major;
    } nodes[] = {{"null", 3, 1}, {"zero", 5, 1}, {"full", 7, 1}, {"random", 8, 1}, {"urandom", 9, 1}, {"tty", 0, 5}};
    static const char *const links[][2] = {{"pts/ptmx", "ptmx"},
                                           {"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"}};
    for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        CHECK(mknodat(dev, nodes[i].name, S_IFCHR | 0600, makedev(nodes[i].major, nodes[i].minor)));
        CHECK(fchmodat(dev, nodes[i].name, 0666, 0));
    }
    for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
        CHECK(symlinkat(links[i][0], dev, links[i][1]));
    directory(dev, "pts", 0755);
    directory(dev, "shm", 0755);
}

int main(int argc, char **argv) {
    if (argc != 5)
        errx(2, "start IMAGE PLACE CGROUP SCRIPT");
    const char *image = argv[1], *place = argv[2], *cgroup = argv[3], *script = argv[4];
    double began = now();

    char root_path[4096], device[64], above[4096];
    snprintf(root_path, sizeof root_path, "%s/root", place);
    CHECK(mkdir(place, 0755));
    CHECK(mkdir(root_path, 0755));

    int loop = loop_over(image, device, sizeof device);
    const char *ext4[] = {"source", device, "errors", "remount-ro"};
    int root = new_mount("ext4", 0, ext4, 4);
    close(loop);
    const unsigned nosuid = MOUNT_ATTR_NOSUID, nodev = MOUNT_ATTR_NODEV, noexec = MOUNT_ATTR_NOEXEC;
    int proc = NEW("proc", nosuid | nodev | noexec);
    int sys = NEW("sysfs", MOUNT_ATTR_RDONLY | nosuid | nodev | noexec);
    int dev = NEW("tmpfs", nosuid | noexec, "mode", "0755", "size", "1m");
    fill_dev(dev);
    int pts = NEW("devpts", nosuid | noexec, "newinstance", NULL, "ptmxmode", "0666", "mode", "0620", "gid", "5");
    int shm = NEW("tmpfs", nosuid | nodev, "mode", "1777");
    int run = NEW("tmpfs", nosuid | nodev, "mode", "0755", "size", "20%");
    directory(run, "lock", 01777);
    attach(proc, root, "proc");
    attach(sys, root, "sys");
    attach(dev, root, "dev");
    attach(pts, root, "dev/pts");
    attach(shm, root, "dev/shm");
    attach(run, root, "run");

    int at = open(root_path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CHECK(at);
    CHECK(syscall(SYS_move_mount, root, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
    close(at);
    close(root);

    for (int up = 2; up >= 0; up--) {
        snprintf(above, sizeof above, "%s", cgroup);
        for (int i = 0; i < up; i++)
            *strrchr(above, '/') = 0;
        if (mkdir(above, 0755) && errno != EEXIST)
            err(1, "%s", above);
    }
    run_script(root_path, cgroup, script, "start");
    printf("%.9f\n", now() - began);
}
