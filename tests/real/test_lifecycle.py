"""Start, stop, reboot and cleanup of small instances: what happens, and what is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import roots
from driving import Chroot, Cli
from kernelview import is_free, is_running, loops_over, mount_on, mounts_below, wait_until

import chrootfw

pytestmark = pytest.mark.quick

MakeChroot = Callable[..., Chroot]

# -- every kind of disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fstype",
    [
        "ext4",
        pytest.param("xfs", marks=pytest.mark.full),
        pytest.param("btrfs", marks=pytest.mark.full),
    ],
)
def test_an_image_lives_and_is_clean_afterwards(
    make_chroot: MakeChroot, image: Callable[..., Path], fstype: str
) -> None:
    web1 = make_chroot(disk=image(fstype))

    web1.cli("start")
    assert web1.state == "running"
    assert mount_on(web1.root).fstype == fstype
    assert web1.pids("sleep")

    web1.cli("stop")
    assert web1.state == "absent"
    assert web1.is_gone()
    roots.check_image(web1.disk, fstype)


def test_a_read_only_image(make_chroot: MakeChroot, image: Callable[..., Path]) -> None:
    web1 = make_chroot(disk=image("squashfs"), read_only=True)
    web1.cli("start")
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.is_gone()


def test_read_only_keeps_a_writable_disk_from_being_written(
    make_chroot: MakeChroot, image: Callable[..., Path]
) -> None:
    disk = image("ext4")
    before = disk.read_bytes()
    web1 = make_chroot(disk=disk, read_only=True)
    web1.start()
    touched = web1.runtime.run("web1", ["/bin/touch", "/srv/new"], capture_output=True)
    assert touched.returncode != 0
    web1.stop()
    assert disk.read_bytes() == before


def test_a_block_device_stays_attached_and_is_free_afterwards(
    make_chroot: MakeChroot, image: Callable[..., Path], attach: Callable[[Path], str]
) -> None:
    file = image("ext4")
    device = attach(file)
    web1 = make_chroot(disk=Path(device))

    web1.cli("start")
    assert mount_on(web1.root).source == device
    web1.cli("stop")

    assert not mounts_below(web1.root)
    assert is_free(device)
    assert loops_over(file) == [device]
    roots.check_image(file, "ext4")


def test_a_directory_is_bound_without_what_is_mounted_below_it(
    web1: Chroot, mounted: Callable[..., Path]
) -> None:
    mounted(web1.disk / "mnt", "-t", "tmpfs", "tmpfs")
    (web1.disk / "mnt/on-the-host").touch()

    web1.cli("start")
    assert not (web1.root / "mnt/on-the-host").exists()
    web1.cli("stop")

    assert (web1.disk / "mnt/on-the-host").exists()
    assert web1.is_gone()


def test_what_is_written_to_a_directory_stays(web1: Chroot) -> None:
    web1.start()
    web1.runtime.run("web1", ["/bin/sh", "-c", "echo kept > /srv/file"], check=True)
    web1.stop()
    assert (web1.disk / "srv/file").read_text() == "kept\n"


def test_the_api_file_systems_are_inside(web1: Chroot) -> None:
    web1.start()
    inside = {
        mount.target.removeprefix(os.fsencode(web1.root)): mount.fstype
        for mount in mounts_below(web1.root)
    }
    assert inside[b"/proc"] == "proc"
    assert inside[b"/sys"] == "sysfs"
    assert inside[b"/dev/pts"] == "devpts"
    assert inside[b"/run"] == "tmpfs"
    assert inside[b"/dev/shm"] == "tmpfs"
    web1.runtime.run(
        "web1",
        ["/bin/sh", "-c", "echo x > /dev/null && head -c 1 /dev/urandom > /dev/shm/x"],
        check=True,
    )


def test_binds(make_chroot: MakeChroot, tmp_path: Path) -> None:
    for name in ("pictures", "music"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "here").write_text(name)
    web1 = make_chroot(
        binds=[f"{tmp_path}/pictures:/srv/pictures", f"{tmp_path}/music:/mnt/music:ro"]
    )
    web1.start()
    for path in ("/srv/pictures/here", "/mnt/music/here"):
        assert (
            web1.runtime.run("web1", ["/bin/cat", path], capture_output=True, text=True).stdout
            == Path(path).parent.name
        )
    assert web1.runtime.run("web1", ["/bin/touch", "/srv/pictures/new"]).returncode == 0
    assert (
        web1.runtime.run("web1", ["/bin/touch", "/mnt/music/new"], capture_output=True).returncode
        != 0
    )
    web1.stop()
    assert web1.is_gone()
    assert sorted(os.listdir(tmp_path / "pictures")) == ["here", "new"]


# -- start ----------------------------------------------------------------------------------------------


def test_the_script_runs_with_nothing_of_the_callers(make_chroot: MakeChroot, cli: Cli) -> None:
    look = (
        "env > /srv/env; pwd > /srv/cwd; umask > /srv/umask; readlink /proc/self/fd/0 > /srv/stdin;"
        "ls /proc/self/fd > /srv/fds; grep -E 'Sig(Ign|Blk)' /proc/self/status > /srv/signals"
    )
    web1 = make_chroot(init=roots.script(start=look + "; " + roots.DAEMON))
    read_end, write_end = os.pipe()

    web1.cli(
        "start",
        prefix=["env", "--ignore-signal=TERM,HUP,USR1", "--block-signal=USR2"],
        env={"SECRET": "of the caller"},
        pass_fds=[write_end],
        cwd="/tmp",
        umask=0o077,
    )

    os.close(read_end)
    os.close(write_end)
    found = {
        name: (web1.disk / "srv" / name).read_text()
        for name in ("env", "cwd", "umask", "stdin", "fds", "signals")
    }
    variables = dict(line.split("=", 1) for line in found["env"].splitlines())
    assert variables.pop("PWD", "/") == "/"  # the shell's own
    assert variables.pop("SHLVL", "1") == "1"
    assert variables.keys() <= {
        "PATH",
        "HOME",
        "LANG",
        "CHROOTFW_INSTANCE",
        "CHROOTFW_ACTION",
        "_",
        "OLDPWD",
    }
    assert (variables["CHROOTFW_INSTANCE"], variables["CHROOTFW_ACTION"]) == ("web1", "start")
    assert found["cwd"] == "/\n"
    assert found["umask"] == "0022\n"
    assert found["stdin"] == "/dev/null\n"
    assert set(found["fds"].split()) <= {"0", "1", "2", "3"}  # 3 is the directory that ls lists
    assert found["signals"] == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"


def test_starting_twice(web1: Chroot) -> None:
    web1.cli("start")
    before = (web1.root_mount, web1.pids())
    web1.cli("start", expect=1, says=["web1"])
    assert (web1.root_mount, web1.pids()) == before
    assert web1.calls() == ["start"]


def test_of_two_starts_at_once_one_wins(web1: Chroot, cli: Cli) -> None:
    both = [cli.begin("start", "web1"), cli.begin("start", "web1")]
    assert sorted(cli.end(process, expect=(0, 1)).status for process in both) == [0, 1]
    assert web1.calls() == ["start"]
    web1.cli("stop")
    assert web1.is_gone()


def test_something_else_mounted_in_its_place(web1: Chroot, mounted: Callable[..., Path]) -> None:
    web1.root.parent.mkdir()
    mounted(web1.root, "-t", "tmpfs", "not-ours")
    web1.cli("start", expect=1, says=["web1"])
    assert [mount.source for mount in mounts_below(web1.root)] == ["not-ours"]
    assert web1.calls() == []


def test_without_a_definition(
    cli: Cli, make_root: Callable[..., Path], runtime: chrootfw.Runtime
) -> None:
    disk = make_root()
    cli("start", "web1", "--disk", str(disk))
    assert runtime.info("web1").state == "running"
    cli("stop", "web1")
    cli("stop", "web1", expect=3, says=["web1"])


def test_an_instance_given_by_the_program(
    runtime: chrootfw.Runtime, make_root: Callable[..., Path]
) -> None:
    info = runtime.start(
        chrootfw.Instance("web1", disk=str(make_root()), params={"require_process": True})
    )
    assert (info.name, info.state) == ("web1", chrootfw.InstanceState.RUNNING)
    runtime.stop("web1")
    assert runtime.list() == []


def test_flags_beside_a_definition_count_for_this_start_only(web1: Chroot) -> None:
    web1.cli("start", "--no-init")
    assert web1.state == "mounted"
    web1.cli("stop")
    assert web1.calls() == []
    web1.cli("start")
    assert web1.state == "running"


def test_another_init_script(web1: Chroot) -> None:
    roots.write_init(
        web1.disk, roots.script(start="touch /srv/other; " + roots.DAEMON), name="srv/other-init"
    )
    web1.cli("start", "--init-script", "/srv/other-init")
    assert (web1.disk / "srv/other").exists()
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]


@pytest.mark.parametrize("how", ["flag", "definition"])
def test_mount_only(web1: Chroot, how: str) -> None:
    if how == "definition":
        web1.define(init_script=False)
    web1.cli("start", *(["--no-init"] if how == "flag" else []))
    assert web1.state == "mounted"
    assert web1.calls() == []
    assert web1.runtime.run("web1", ["/bin/echo", "hi"], capture_output=True).stdout == b"hi\n"
    web1.cli("stop")
    assert web1.calls() == []
    assert web1.is_gone()


def test_a_script_that_leaves_no_process_is_a_warning(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start="true"))
    started = web1.cli("start")
    assert "process" in started.stderr
    assert web1.state == "mounted"


def test_a_required_process_that_is_missing_is_an_error(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start="true"), require_process=True)
    web1.cli("start", expect=1, says=["web1", "process"])
    assert web1.is_gone()
    web1.write_init(roots.script())
    web1.cli("start")


@attrs.frozen
class Touch(chrootfw.Step):
    """Make a file; with ``fails`` do that, and fail."""

    kind = "touch"
    marker: str
    fails: bool

    def describe(self) -> str:
        return f"make {self.marker}"

    def apply(self) -> None:
        Path(self.marker).touch()
        if self.fails:
            raise OSError(28, "no space left, says the test")

    def undo(self, record: object) -> None:
        Path(self.marker).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        pytest.param({"fstype": "xfs"}, "disk.img", id="mount: wrong type"),
        pytest.param(
            {"mount_options": ["no_such_option"]}, "no_such_option", id="mount: wrong option"
        ),
        pytest.param(
            {"binds": ["/no/such/directory:/mnt"]}, "/no/such/directory", id="mount: missing source"
        ),
        pytest.param({"min_free": 1 << 30}, "web1", id="pre-start: no space"),
        pytest.param({"init_script": "/no/such/script"}, "web1", id="pre-start: no script"),
        pytest.param(
            {"start_timeout": 0.2, "init_script": "/srv/hangs"}, "web1", id="init-start: hangs"
        ),
        pytest.param(
            {"init_script": "/srv/fails"}, "web1", id="init-start: fails and leaves a daemon"
        ),
    ],
)
def test_a_start_that_fails_is_undone(
    make_chroot: MakeChroot, tmp_path: Path, params: dict[str, object], words: str
) -> None:
    def fill(root: Path) -> None:
        roots.make_root(root)
        roots.write_init(root, "#!/bin/sh\n/bin/sleep 3600 & sleep 3600", name="srv/hangs")
        roots.write_init(root, "#!/bin/sh\n/bin/sleep 3600 & exit 1", name="srv/fails")

    disk = roots.make_image(tmp_path / "disk.img", "ext4", fill)
    web1 = make_chroot(disk=disk, **params)

    web1.cli("start", expect=1, says=[words])

    assert web1.is_gone()
    assert not web1.root.parent.exists()
    assert web1.state == "absent"
    roots.check_image(disk, "ext4")
    web1.define()
    web1.cli("start")


def test_steps_done_before_the_failing_one_are_undone(
    run_dir: Path, config_dir: Path, web1: Chroot, tmp_path: Path
) -> None:
    class Plugin:
        @chrootfw.hookimpl
        def chrootfw_pre_start(self) -> list[chrootfw.Step]:
            return [Touch(str(tmp_path / "first"), False), Touch(str(tmp_path / "second"), True)]

    runtime = chrootfw.Runtime([Plugin()], run_dir=str(run_dir), config_dir=str(config_dir))
    with pytest.raises(chrootfw.StepError, match="no space left, says the test"):
        runtime.start("web1")
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
    assert web1.is_gone()


def test_min_free_is_in_mib(make_chroot: MakeChroot, image: Callable[..., Path]) -> None:
    web1 = make_chroot(disk=image("ext4"), min_free=25)
    web1.cli("start", expect=1, says=["web1"])
    web1.define(min_free=5)
    web1.cli("start")


def test_the_context_manager_stops_whatever_happens(web1: Chroot) -> None:
    with pytest.raises(ZeroDivisionError), web1.runtime.running("web1") as chroot:
        assert chroot.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout == "hi\n"
        raise ZeroDivisionError
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


# -- stop -----------------------------------------------------------------------------------------------


def test_stopping_what_is_absent_is_done_already(web1: Chroot) -> None:
    web1.cli("stop")
    web1.cli("cleanup")
    assert web1.calls() == []


def test_stop_runs_the_script_once(web1: Chroot) -> None:
    web1.cli("start")
    web1.cli("stop")
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        pytest.param("exit 3", "3", id="fails"),
        pytest.param("kill -SEGV $$", "11", id="dies"),
        pytest.param("exec /bin/no-such-program", "127", id="breaks"),
        pytest.param("sleep 3600", "0.2", id="hangs"),
    ],
)
def test_a_stop_script_that_goes_wrong_is_told_and_the_stop_goes_on(
    make_chroot: MakeChroot, stop: str, words: str
) -> None:
    web1 = make_chroot(init=roots.script(stop=stop), stop_script_timeout=0.2)
    web1.start()
    daemon = web1.pids()
    stopped = web1.cli("stop")
    assert words in stopped.stderr
    assert "/etc/chrootfw/init" in stopped.stderr
    assert web1.is_gone()
    assert not any(is_running(pid) for pid in daemon)


def test_a_script_that_vanished_is_told_and_the_stop_goes_on(web1: Chroot) -> None:
    web1.start()
    (web1.disk / roots.INIT).unlink()
    assert "/etc/chrootfw/init" in web1.cli("stop").stderr
    assert web1.is_gone()


@pytest.mark.parametrize("flag", ["--no-script", "--force"])
def test_stop_without_the_script(web1: Chroot, flag: str) -> None:
    web1.cli("start")
    web1.cli("stop", flag)
    assert web1.calls() == ["start"]
    assert web1.is_gone()


#: A daemon that notes a TERM in /srv before it ends.
NOTES_TERM = "/bin/sh -c 'trap \"echo TERM >> /srv/got; exit\" TERM; echo > /run/ready; while :; do usleep 1000; done' &"


def test_term_comes_first(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start=NOTES_TERM, stop="true"))
    web1.start()
    wait_until((web1.root / "run/ready").exists, "the daemon listens to TERM")
    web1.cli("stop")
    assert (web1.disk / "srv/got").read_text() == "TERM\n"
    assert web1.is_gone()


def test_force_kills_at_once(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start=NOTES_TERM, stop="true"))
    web1.start()
    wait_until((web1.root / "run/ready").exists, "the daemon listens to TERM")
    web1.cli("stop", "--force")
    assert not (web1.disk / "srv/got").exists()
    assert web1.is_gone()


@pytest.mark.parametrize("how", ["flag", "definition", "library"])
def test_what_ignores_term_is_killed(make_chroot: MakeChroot, how: str) -> None:
    web1 = make_chroot(
        init=roots.script(start=roots.STUBBORN),
        **({"grace": 0.1} if how == "definition" else {"grace": 3600}),
    )
    web1.start()
    stubborn = web1.pids()
    if how == "library":
        web1.stop(timeout=0.1)
    else:
        web1.cli("stop", *(["--timeout", "0.1"] if how == "flag" else []))
    assert stubborn
    assert not any(is_running(pid) for pid in stubborn)
    assert web1.is_gone()


def test_force_does_not_wait_for_what_ignores_term(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start=roots.STUBBORN), grace=3600)
    web1.start()
    web1.cli("stop", "--force")
    assert web1.is_gone()


@pytest.mark.parametrize("flags", [[], ["--force"]], ids=["plain", "force"])
def test_a_stopped_process_ends_too(make_chroot: MakeChroot, flags: list[str]) -> None:
    web1 = make_chroot(
        init=roots.script(start="/bin/sleep 3600 & kill -STOP $!", stop="true"), grace=0.2
    )
    web1.start()
    web1.cli("stop", *flags)
    assert web1.is_gone()


def test_a_daemon_that_multiplies_while_it_is_stopped(make_chroot: MakeChroot) -> None:
    breeder = "trap '' TERM; /bin/sh -c 'while :; do /bin/sleep 3600 & usleep 500; done' &"
    web1 = make_chroot(init=roots.script(start=breeder, stop="true"), grace=0.1)
    web1.start()
    web1.cli("stop")
    assert web1.is_gone()


def test_a_daemon_in_a_session_of_its_own_with_a_changed_root(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(
        init=roots.script(
            start="setsid /bin/busybox chroot /srv/jail /bin/busybox sleep 3600 &", stop="true"
        )
    )
    (web1.disk / "srv/jail/bin").mkdir(parents=True)
    os.link(web1.disk / "bin/busybox", web1.disk / "srv/jail/bin/busybox")
    web1.start()
    (jailed,) = wait_until(lambda: web1.pids("busybox"), "the daemon runs")
    web1.cli("stop")
    assert not is_running(jailed)
    assert web1.is_gone()


def test_keep_mounted(web1: Chroot) -> None:
    web1.start()
    mount = web1.root_mount
    web1.cli("stop", "--keep-mounted")
    assert web1.state == "mounted"
    assert web1.root_mount == mount
    web1.cli("cleanup")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


def test_start_after_keep_mounted_uses_the_mounts_that_are_there(web1: Chroot) -> None:
    web1.start()
    mount = web1.root_mount
    web1.cli("stop", "--keep-mounted")
    web1.cli("start")
    assert web1.state == "running"
    assert web1.root_mount == mount
    web1.cli("stop")
    assert web1.calls() == ["start", "stop", "start", "stop"]
    assert web1.is_gone()


def test_stop_after_keep_mounted_runs_no_script_again(web1: Chroot) -> None:
    web1.start()
    web1.cli("stop", "--keep-mounted")
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


def test_cleanup_is_refused_while_it_runs(web1: Chroot) -> None:
    web1.start()
    before = (web1.root_mount, web1.pids())
    web1.cli("cleanup", expect=1, says=["web1"])
    assert (web1.root_mount, web1.pids()) == before


def test_cleanup_after_all_its_processes_ended(web1: Chroot) -> None:
    web1.start()
    for pid in web1.pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: web1.state == "mounted", "its daemon is gone")
    web1.cli("cleanup")
    assert web1.calls() == ["start"]
    assert web1.is_gone()


# -- reboot ---------------------------------------------------------------------------------------------


def test_reboot_keeps_the_disk_mounted_and_makes_the_rest_new(web1: Chroot) -> None:
    web1.start()
    mount, daemons = web1.root_mount, web1.pids()
    for directory in ("run", "dev/shm", "srv"):
        (web1.root / directory / "from-before").touch()

    web1.cli("reboot")

    assert web1.state == "running"
    assert web1.root_mount == mount
    assert not (web1.root / "run/from-before").exists()
    assert not (web1.root / "dev/shm/from-before").exists()
    assert (web1.root / "srv/from-before").exists()
    assert web1.pids()
    assert not web1.pids() & daemons
    assert web1.calls() == ["start", "stop", "start"]
    web1.cli("stop")
    assert web1.is_gone()


def test_reboot_takes_away_what_was_mounted_since(web1: Chroot) -> None:
    web1.start()
    targets = sorted(mount.target for mount in mounts_below(web1.root))
    web1.runtime.run("web1", ["/bin/mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
    web1.cli("reboot")
    assert sorted(mount.target for mount in mounts_below(web1.root)) == targets


def test_reboot_of_a_stubborn_one(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start=roots.STUBBORN), grace=0.1)
    web1.start()
    before = web1.pids()
    web1.cli("reboot")
    assert web1.pids()
    assert not web1.pids() & before


def test_a_reboot_whose_start_fails_says_so(web1: Chroot) -> None:
    web1.start()
    before = web1.pids()
    web1.write_init(roots.script(start="exit 1"))
    web1.cli("reboot", expect=1, says=["web1"])
    assert not any(is_running(pid) for pid in before)
    assert web1.state in ("mounted", "absent")
    web1.cli("stop")
    assert web1.is_gone()


def test_reboot_of_what_is_absent(web1: Chroot) -> None:
    web1.cli("reboot", expect=1, says=["web1"])
    assert web1.calls() == []


# -- neighbours -----------------------------------------------------------------------------------------

NEIGHBOURS = [("web1", "web10"), ("web1", "web1.1"), ("a", "A"), ("web1", "web1-root"), ("1", "11")]


@pytest.mark.parametrize(("name", "neighbour"), NEIGHBOURS)
@pytest.mark.parametrize("verb", ["stop", "stop --force", "reboot"])
def test_similar_names_never_meet(
    make_chroot: MakeChroot, name: str, neighbour: str, verb: str
) -> None:
    one, other = make_chroot(name), make_chroot(neighbour)
    one.start()
    other.start()
    before = (other.pids(), sorted(mount.id for mount in mounts_below(other.root)))

    one.cli(verb)

    assert (other.pids(), sorted(mount.id for mount in mounts_below(other.root))) == before
    assert other.state == "running"
    assert other.calls() == ["start"]
    one.cli("stop")
    other.cli("stop")
    assert one.is_gone()
    assert other.is_gone()


def test_one_name_in_two_run_directories(
    web1: Chroot, tmp_path: Path, config_dir: Path, make_root: Callable[..., Path], ground: object
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Cli(tmp_path / "elsewhere", config_dir, ground)
    web1.start()
    before = web1.pids()
    other("start", "web1", "--disk", str(make_root("other")))
    assert other.json("info", "web1")["instances"][0]["state"] == "running"
    other("stop", "web1")
    assert web1.pids() == before
    assert web1.state == "running"


# -- signals to the command -----------------------------------------------------------------------------

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

HANGS = "/bin/sleep 3600 & touch /srv/reached; while :; do sleep 1; done"
WAITS = "touch /srv/reached; until [ -e /srv/go ]; do usleep 1000; done"


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_undoes_a_start(make_chroot: MakeChroot, cli: Cli, signum: signal.Signals) -> None:
    web1 = make_chroot(init=roots.script(start=HANGS), start_timeout=3600)
    starting = cli.begin("start", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script hangs")
    starting.send_signal(signum)
    cli.end(starting, expect=128 + signum)
    assert web1.is_gone()
    assert web1.state == "absent"


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_to_a_stop_lets_the_step_end_and_says_what_remains(
    make_chroot: MakeChroot, cli: Cli, signum: signal.Signals
) -> None:
    web1 = make_chroot(init=roots.script(stop=WAITS), stop_script_timeout=3600)
    web1.start()
    stopping = cli.begin("stop", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script waits")
    for _ in range(2):  # a second one changes nothing
        stopping.send_signal(signum)
    (web1.disk / "srv/go").touch()
    stopped = cli.end(stopping, expect=128 + signum)
    assert "web1" in stopped.stderr
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.calls() == ["start", "stop"]
    assert web1.is_gone()


def test_a_command_that_waits_for_another_says_for_whom(make_chroot: MakeChroot, cli: Cli) -> None:
    web1 = make_chroot(init=roots.script(start=f"{WAITS}; {roots.DAEMON}"))
    starting = cli.begin("start", "web1")
    wait_until((web1.disk / "srv/reached").exists, "the script waits")
    web1.cli("stop", "--lock-timeout", "0.1", expect=1, says=["web1", str(starting.pid)])
    (web1.disk / "srv/go").touch()
    cli.end(starting)
    assert web1.state == "running"
