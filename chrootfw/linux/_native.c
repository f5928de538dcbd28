/* Children that carry out batches of system calls, and statx(2) for many files at once.
 *
 * A child of this module runs no Python: it starts with clone3(2), carries out the batch that lies
 * in memory, and exits. So it may be started beside other threads, whatever locks they hold. The
 * memory is shared, and the parent reads the results there, also while a call has not returned.
 * call_batch.py writes the batch; batch_program.py does the same as this file without a compiler.
 *
 * A child either shares all of its parent's memory, as with vfork(2), and costs the same for a
 * program of any size; or it is a fork, because it changes what belongs to the memory: its user, its
 * capabilities, and which cgroup pays for it. Sharing needs system calls that do not write to the
 * C library's errno, which is the parent's, and a stack of the child's own. The C library has no
 * function for that, so it is done for x86_64 only; other processors fork.
 *
 * The caller blocks all signals around `start`, and they stay blocked in the child.
 */
#define _GNU_SOURCE
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Compared with native.VERSION: an extension that is older or newer than the Python code beside it
 * is named, and not used. */
#define VERSION 3

#if __SIZEOF_LONG__ != 8
#error "chrootfw needs a 64-bit processor"
#endif

/* tools/check_native.py defines NO_ASSEMBLER to check what other processors do. */
#if defined(__x86_64__) && !defined(NO_ASSEMBLER)
#define CAN_SHARE 1
#else
#define CAN_SHARE 0
#endif

/* From 424 up, system calls have the same numbers on every architecture but alpha. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsconfig 431
#define SYS_fspick 433
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

/* The system calls that a batch may contain, for NUMBERS. */
#define FOR_EACH_CALL(X)                                                                          \
    X(capset) X(chdir) X(chroot) X(clock_gettime) X(clone) X(clone3) X(close) X(close_range)      \
    X(dup3) X(execve) X(exit_group) X(fchdir) X(fsconfig) X(fspick) X(fstatfs) X(fsync)           \
    X(getcwd) X(getdents64) X(ioctl) X(ioprio_set) X(kcmp) X(keyctl) X(mkdirat) X(mount)          \
    X(mount_setattr) X(move_mount) X(nanosleep) X(open_tree) X(openat) X(openat2)                 \
    X(pidfd_getfd) X(pivot_root) X(ppoll) X(prctl) X(pread64) X(prlimit64) X(read)                \
    X(readlinkat) X(removexattr) X(renameat2) X(rt_sigaction) X(rt_sigprocmask)                   \
    X(sched_setaffinity) X(sched_setscheduler) X(seccomp) X(sendmsg) X(setgroups)                 \
    X(sethostname) X(setns) X(setpriority) X(setresgid) X(setresuid) X(setsid) X(statx)           \
    X(umask) X(umount2) X(unlinkat) X(unshare) X(write)

/* -- a batch, as call_batch.py writes it ------------------------------------------------------- */

enum { VALUE, ADDRESS, RESULT }; /* kinds of arguments */
enum { COMPARE = -1 };           /* in place of a system call's number */
enum { END = -1 };               /* in place of an operation's index */

struct operation {
    int64_t arguments[6]; /* a number, an offset in the batch's memory, or an operation's index */
    uint64_t ignored;     /* bit N: errno N is no failure */
    int64_t result;       /* a negative errno if the call failed */
    int32_t number;       /* of the system call; COMPARE: have eight bytes this value,
                           * apart from bits that a mask leaves out? */
    int32_t on_failure;   /* the operation that follows a failure, or END */
    uint8_t kinds[8];     /* of the arguments */
};

struct pointer { /* eight bytes of the batch's memory that are to point to others */
    uint64_t place, target;
};

struct batch { /* the beginning of the memory; all places in it are offsets */
    uint64_t operations, operation_count;
    uint64_t pointers, pointer_count;
    uint64_t stack, stack_size; /* for a child that shares its parent's memory */
};

/* -- in the child: no Python, and on x86_64 no C library --------------------------------------- */

#if CAN_SHARE
static long call(long number, const long a[6]) {
    register long r10 __asm__("r10") = a[3];
    register long r8 __asm__("r8") = a[4];
    register long r9 __asm__("r9") = a[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#else
static long call(long number, const long a[6]) {
    long result = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    return result == -1 ? -errno : result;
}
#endif

static long perform(const struct operation *operations, const struct operation *operation,
                    char *memory) {
    long arguments[6];
    for (int i = 0; i < 6; i++) {
        int64_t value = operation->arguments[i];
        switch (operation->kinds[i]) {
        case ADDRESS:
            arguments[i] = (long)(memory + value);
            break;
        case RESULT:
            arguments[i] = operations[value].result;
            break;
        default:
            arguments[i] = value;
        }
    }
    if (operation->number == COMPARE)
        return (*(int64_t *)arguments[0] & arguments[2]) == arguments[1] ? 0 : -ESTALE;
    return call(operation->number, arguments);
}

/* Carry out the batch, then exit. */
__attribute__((noreturn)) static void be_child(char *memory) {
    struct batch *batch = (struct batch *)memory;
    struct operation *operations = (struct operation *)(memory + batch->operations);
    int64_t next = 0;
    while (next != END && next < (int64_t)batch->operation_count) {
        struct operation *operation = &operations[next];
        long result = perform(operations, operation, memory);
        __atomic_store_n(&operation->result, result, __ATOMIC_RELEASE);
        int failed = result < 0 && result >= -4095;
        if (failed && result > -63 && operation->ignored >> -result & 1)
            failed = 0;
        next = failed ? operation->on_failure : next + 1;
    }
    for (;;)
        call(SYS_exit_group, (long[6]){0});
}

/* -- in the parent ------------------------------------------------------------------------------ */

/* Version 2 of the kernel's struct clone_args; the headers of some builds do not have it. */
struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};

/* Return the pid of a child that shares this process's memory, or a negative errno. */
static long start_sharing(struct clone_arguments *arguments, char *memory) {
#if CAN_SHARE
    /* As clone(2) of the C library does it: in the child, the stack is new and empty, and there is
     * nothing to return to. */
    register char *child_memory __asm__("r12") = memory;
    register void (*child)(char *) __asm__("r13") = be_child;
    long result;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r12, %%rdi\n\t"
                     "call *%%r13\n"
                     "1:"
                     : "=a"(result)
                     : "a"(SYS_clone3), "D"(arguments), "S"(sizeof *arguments), "r"(child_memory),
                       "r"(child)
                     : "rcx", "r11", "memory", "cc");
    return result;
#else
    (void)arguments, (void)memory;
    return -EINVAL;
#endif
}

/* Return the pid of a fork, or a negative errno. */
static long start_fork(struct clone_arguments *arguments, char *memory) {
    long pid = syscall(SYS_clone3, arguments, sizeof *arguments);
    if (pid == 0)
        be_child(memory);
    return pid < 0 ? -errno : pid;
}

/* The same, where a seccomp filter that predates clone3(2) answers ENOSYS. The child joins its
 * cgroup by itself. */
static long start_by_clone(uint64_t flags, int *pidfd, int cgroup, char *memory) {
    int join = cgroup < 0 ? -1 : openat(cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (cgroup >= 0 && join < 0)
        return -errno;
#ifdef __s390x__
    long pid = syscall(SYS_clone, 0, flags | SIGCHLD, pidfd, 0, 0);
#else
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, pidfd, 0, 0);
#endif
    if (pid == 0) {
        if (join >= 0 && call(SYS_write, (long[6]){join, (long)"0", 1}) != 1)
            for (;;)
                call(SYS_exit_group, (long[6]){127});
        if (join >= 0)
            call(SYS_close, (long[6]){join});
        be_child(memory);
    }
    long code = errno;
    if (join >= 0)
        close(join);
    return pid < 0 ? -code : pid;
}

/* Return the pid of a child that carries out the batch, or a negative errno. */
static long start_child(char *memory, int *pidfd, uint64_t flags, int cgroup, int shares) {
    struct batch *batch = (struct batch *)memory;
    struct clone_arguments arguments = {
        .flags = flags | CLONE_PIDFD, .pidfd = (uintptr_t)pidfd, .exit_signal = SIGCHLD};
    long pid = -EINVAL;
    if (cgroup >= 0) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)cgroup;
    }
    if (shares) {
        struct clone_arguments sharing = arguments;
        sharing.flags |= CLONE_VM;
        sharing.stack = (uintptr_t)memory + batch->stack;
        sharing.stack_size = batch->stack_size;
        pid = start_sharing(&sharing, memory);
    }
    /* Before Linux 6.1, memory is not shared if children get another time namespace. */
    if (pid == -EINVAL)
        pid = start_fork(&arguments, memory);
    if (pid == -ENOSYS)
        pid = start_by_clone(flags | CLONE_PIDFD, pidfd, cgroup, memory);
    return pid;
}

/* Raise OSError with the name of the call. */
static PyObject *fail(const char *name, int code) {
    PyObject *error = PyObject_CallFunction(
        PyExc_OSError, "iN", code, PyUnicode_FromFormat("%s: %s", name, strerror(code)));
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

/* Check that the parts of a batch lie within its memory, and let its pointers point. */
static int is_whole(char *memory, uint64_t size) {
    struct batch *batch = (struct batch *)memory;
    if (size < sizeof *batch || batch->stack > size || batch->stack_size > size - batch->stack ||
        batch->operations > size || batch->pointers > size ||
        batch->operation_count > (size - batch->operations) / sizeof(struct operation) ||
        batch->pointer_count > (size - batch->pointers) / sizeof(struct pointer))
        return 0;
    struct pointer *pointers = (struct pointer *)(memory + batch->pointers);
    for (uint64_t i = 0; i < batch->pointer_count; i++) {
        if (pointers[i].place > size - sizeof(char *) || pointers[i].target > size)
            return 0;
        *(char **)(memory + pointers[i].place) = memory + pointers[i].target;
    }
    return 1;
}

/* start(memory, pidfd, flags, cgroup, shares) -> pid; see _native.pyi. */
static PyObject *start(PyObject *module, PyObject *args) {
    Py_buffer memory, pidfd;
    unsigned long long flags;
    int cgroup, shares;
    long pid = -EINVAL;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*w*Kip", &memory, &pidfd, &flags, &cgroup, &shares))
        return NULL;
    if (pidfd.len >= (Py_ssize_t)sizeof(int) && is_whole(memory.buf, (uint64_t)memory.len))
        pid = start_child(memory.buf, pidfd.buf, flags, cgroup, shares);
    PyBuffer_Release(&memory);
    PyBuffer_Release(&pidfd);
    return pid < 0 ? fail("clone3", (int)-pid) : PyLong_FromLong(pid);
}

/* -- statx(2) for many files --------------------------------------------------------------------- */

/* The kernel's struct statx, as of Linux 5.8. */
struct status {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, unused;
    uint64_t inode, size, blocks, attributes_mask, times[8];
    uint32_t special[2], device[2]; /* major and minor number */
    uint64_t mount, later[13];
};
_Static_assert(sizeof(struct status) == 256, "struct statx has 256 bytes");

/* statx_many(paths, flags, mask) -> list of tuples; see _native.pyi. */
static PyObject *statx_many(PyObject *module, PyObject *args) {
    PyObject *paths;
    int flags;
    unsigned int mask;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!iI", &PyList_Type, &paths, &flags, &mask))
        return NULL;
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_Size(paths); i++) {
        struct status s;
        PyObject *row = NULL, *path = PyList_GetItem(paths, i); /* both references are borrowed */
        char *text = path == NULL ? NULL : PyBytes_AsString(path);
        if (text != NULL && syscall(SYS_statx, AT_FDCWD, text, flags, mask, &s) == 0)
            row = Py_BuildValue("(IKKKKK)", (unsigned int)s.mode, (unsigned long long)s.inode,
                                s.special[0] | (unsigned long long)s.special[1] << 32,
                                s.device[0] | (unsigned long long)s.device[1] << 32,
                                (unsigned long long)s.attributes, (unsigned long long)s.mount);
        else if (text != NULL)
            row = Py_BuildValue("");
        if (row == NULL || PyList_Append(found, row) < 0)
            Py_CLEAR(found);
        Py_XDECREF(row);
    }
    return found;
}

/* -- the module ---------------------------------------------------------------------------------- */

static int fill(PyObject *module) {
    static const struct {
        const char *name;
        int number;
    } calls[] = {
#define ENTRY(name) {#name, SYS_##name},
        FOR_EACH_CALL(ENTRY)
#undef ENTRY
    };
    PyObject *numbers = PyDict_New();
    if (numbers == NULL)
        return -1;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        PyObject *number = PyLong_FromLong(calls[i].number);
        if (number == NULL || PyDict_SetItemString(numbers, calls[i].name, number) < 0) {
            Py_XDECREF(number);
            Py_DECREF(numbers);
            return -1;
        }
        Py_DECREF(number);
    }
    int failed = PyModule_AddObjectRef(module, "NUMBERS", numbers) < 0 ||
                 PyModule_AddIntConstant(module, "VERSION", VERSION) < 0 ||
                 PyModule_AddIntConstant(module, "CAN_SHARE", CAN_SHARE) < 0;
    Py_DECREF(numbers);
    return failed ? -1 : 0;
}

static PyMethodDef methods[] = {
    {"start", start, METH_VARARGS, "Start a child that carries out a batch."},
    {"statx_many", statx_many, METH_VARARGS, "Call statx(2) for each path."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
