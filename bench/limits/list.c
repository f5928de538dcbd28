/* The limit of a list: read, whole, what chrootfw reads, and decide nothing.
 *
 *     list RUN_DIR CGROUPS V1_CGROUPS PASSES
 *
 * The mount table once; for each cgroup of the run directory cgroup.procs, cpu.stat, and memory.current, or where no controller
 * counts memory statm of each process (cgroup.events is asked where no process is listed, which is nowhere here); each
 * instance's record.json. V1_CGROUPS is - unless version 1 counts the memory. Prints the median of the passes in seconds.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];
static unsigned long seen; /* what was read is used, or it could be left out */

static ssize_t take(int at, const char *path)
{
	ssize_t got, all = 0;
	int fd = openat(at, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		if (errno == ENOENT)
			return -1;
		perror(path);
		exit(1);
	}
	while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
		seen += (unsigned char)buffer[got - 1];
		all += got;
	}
	close(fd);
	return all;
}

/* The lines of the mount table that are below the run directory. */
static unsigned long mounts(const char *run_dir)
{
	size_t size = 1 << 20, used = 0, length = strlen(run_dir);
	char *table = malloc(size), *line, *end;
	unsigned long found = 0;
	ssize_t got;
	int fd = open("/proc/thread-self/mountinfo", O_RDONLY | O_CLOEXEC);

	while ((got = read(fd, table + used, size - used - 1)) > 0) {
		used += got;
		if (size - used < 65536)
			table = realloc(table, size *= 2);
	}
	close(fd);
	table[used] = 0;
	for (line = table; (end = strchr(line, '\n')); line = end + 1) {
		char *at = line;

		*end = 0;
		for (int field = 0; field < 4 && at; field++)
			at = strchr(at + 1, ' ');
		if (at && !strncmp(at + 1, run_dir, length) && at[1 + length] == '/')
			found++;
	}
	free(table);
	return found;
}

/* Read the files of every directory in one. Without memory.current the processes are asked, whose pids are in the buffer. */
static void each(const char *directory, const char *const *files)
{
	DIR *all = opendir(directory);
	struct dirent *entry;

	if (!all) {
		perror(directory);
		exit(1);
	}
	while ((entry = readdir(all))) {
		char path[600], pids[4096] = "";

		if (entry->d_name[0] == '.' || entry->d_type != DT_DIR)
			continue;
		for (const char *const *file = files; *file; file++) {
			ssize_t got;

			snprintf(path, sizeof(path), "%s/%s", entry->d_name, *file);
			got = take(dirfd(all), path);
			if (!strcmp(*file, "cgroup.procs") && got > 0)
				snprintf(pids, sizeof(pids), "%.*s", (int)got, buffer);
			if (!strcmp(*file, "memory.current") && got < 0)
				for (char *pid = strtok(pids, "\n"); pid; pid = strtok(NULL, "\n")) {
					snprintf(path, sizeof(path), "/proc/%s/statm", pid);
					take(AT_FDCWD, path);
				}
		}
	}
	closedir(all);
}

static int by_value(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
	static const char *const v2[] = {"cgroup.procs", "memory.current", "cpu.stat", NULL};
	static const char *const v2_cpu[] = {"cgroup.procs", "cpu.stat", NULL};
	static const char *const v1[] = {"memory.usage_in_bytes", NULL};
	static const char *const intents[] = {"record.json", NULL};
	int passes = argc == 5 ? atoi(argv[4]) : 0;
	double *taken = calloc(passes + 1, sizeof(*taken));

	if (passes < 1) {
		fprintf(stderr, "usage: list RUN_DIR CGROUPS V1_CGROUPS PASSES\n");
		return 2;
	}
	for (int pass = 0; pass <= passes; pass++) {
		struct timespec begin, end;

		clock_gettime(CLOCK_MONOTONIC, &begin);
		seen += mounts(argv[1]);
		each(argv[2], strcmp(argv[3], "-") ? v2_cpu : v2);
		if (strcmp(argv[3], "-"))
			each(argv[3], v1);
		each(argv[1], intents);
		clock_gettime(CLOCK_MONOTONIC, &end);
		taken[pass] = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9;
	}
	qsort(taken + 1, passes, sizeof(*taken), by_value); /* the first is not counted */
	printf("%.9f %lu\n", taken[1 + passes / 2], seen);
	return 0;
}
