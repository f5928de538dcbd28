# For run and nightly: what a run must leave as it was, and the two commands of the README in new roots.

export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
export CHROOTFW_CI=$$ # names the processes of this run, should one of them stay

step() { printf '\n== %s\n' "$*"; }

snapshot() { # mounts, loop devices, cgroups, processes of this run or of an instance
    findmnt --raw --noheadings --output TARGET,SOURCE,FSTYPE
    losetup --all
    find /sys/fs/cgroup -path '*/chrootfw*' -type d
    python3 - $$ <<'PYTHON'
import pathlib, sys

processes = {}
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        stat = (entry / "stat").read_text().rpartition(")")[2].split()
        processes[entry.name] = stat[1], (entry / "environ").read_bytes(), (entry / "comm").read_text().strip()
    except OSError:
        continue
for pid, (parent, environment, command) in processes.items():
    above = {pid}
    while parent in processes and parent not in above:
        above.add(parent)
        parent = processes[parent][0]
    if sys.argv[1] not in above and (b"CHROOTFW_INSTANCE=" in environment or b"CHROOTFW_CI=" in environment):
        print("process", pid, command)
PYTHON
}

check_machine() { # BEFORE: fail if the machine is not as it was
    local changes
    step "the machine is as before"
    # The empty cgroups that an earlier run left may be gone now.
    changes=$(diff <(echo "$1") <(snapshot) || true)
    if grep '^[<>]' <<<"$changes" | grep -v '^< /sys/fs/cgroup/.*/chrootfw'; then
        echo "the machine has changed (> is new, < is gone)"
        return 1
    fi
    echo "mounts, loop devices, cgroups and processes: nothing was left"
}

readme() { # MARK: the command that stands after a mark in the README
    awk -v mark="<!-- $1 -->" '$0 == mark {found = 1} found && /^\$ / {print substr($0, 3); exit}' README.md
}

readme_in_new_roots() { # SUITE: each of the two commands, in a new root of that release
    local mark began
    for mark in demo tests; do
        step "README on a new Debian $1: $(readme $mark)"
        began=$SECONDS
        python3 .ci/minimal_root.py "$1" "$(readme $mark)"
        echo "$1: the $mark command took $((SECONDS - began)) s, the making of the root included"
    done
}

install_compiler() { # from now on, a wheel without chrootfw.linux._native is an error, and so are tests that do not use it
    if ! command -v gcc >/dev/null || ! python3 -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("include"), "Python.h").stat()' 2>/dev/null; then
        apt-get update -qq
        apt-get install -qq --yes --no-install-recommends gcc libc6-dev python3-dev >/dev/null
    fi
    export CHROOTFW_BUILD_NATIVE=1
}

make_tox() { # DIRECTORY: an environment with tox in it
    if ! python3 -m venv "$1" >/dev/null; then
        apt-get update -qq
        apt-get install -qq --yes python3-venv
        python3 -m venv --clear "$1"
    fi
    "$1/bin/pip" install --quiet tox
}
