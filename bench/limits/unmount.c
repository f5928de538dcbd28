/* unmount make|end DIRECTORY COUNT: COUNT mounts (tmpfs) on DIRECTORY/0 and so on, or a bare umount2 loop over them.
 *
 * ``end`` takes the directory's own mount too if it has one. Prints the seconds.
 */
#include "limit.h"

int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);

int main(int argc, char **argv) {
    if (argc != 4 || (strcmp(argv[1], "make") && strcmp(argv[1], "end")))
        errx(2, "unmount make|end DIRECTORY COUNT");
    int count = atoi(argv[3]), make = strcmp(argv[1], "make") == 0;
    char path[4096];
    double began = now();
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%d", argv[2], i);
        if (make) {
            if (mkdir(path, 0755) && errno != EEXIST)
                err(1, "%s", path);
            CHECK(mount("sub", path, "tmpfs", 0, "size=4k,nr_inodes=2"));
        } else {
            CHECK(umount2(path, 8 /* UMOUNT_NOFOLLOW */));
        }
    }
    printf("%.9f\n", now() - began);
}
