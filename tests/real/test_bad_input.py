"""Bad names, disks, scripts, directories and states.

Each gives one clear sentence and leaves nothing, and good input works afterwards.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import roots
from driving import Chroot, Cli
from kernelview import cgroups_of, identity, is_running, mount_table, mounts_below, wait_until

import chrootfw

MakeChroot = Callable[..., Chroot]

# -- names ----------------------------------------------------------------------------------------------

BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "root": "/",
    "up": "../web1",
    "nested": "a/b",
    "hidden": ".web1",
    "newline": "web1\n",
    "only a newline": "\n",
    "space": "web 1",
    "too long": "x" * 300,
    "option": "-web1",
    "control bytes": "web\x01\x1b[31m",
    "no ASCII": "wéb",
    "no UTF-8": "web\udcff",
    "pattern with control bytes": "w*\x01",
    "at": "web@1",
}


@pytest.mark.quick
@pytest.mark.parametrize("verb", ["start", "stop"])
@pytest.mark.parametrize("kind", BAD_NAMES)
def test_a_bad_name(cli: Cli, run_dir: Path, kind: str, verb: str) -> None:
    before = sorted(run_dir.iterdir())
    refused = cli(verb, "--", BAD_NAMES[kind], expect=2, says=["name"])
    assert "\x1b" not in refused.stderr
    assert sorted(run_dir.iterdir()) == before


@pytest.mark.parametrize("verb", ["plan stop", "plugins"])
def test_a_pattern_is_no_name_where_one_is_wanted(cli: Cli, verb: str) -> None:
    cli(*verb.split(), "web*", expect=2, says=["name"])


@pytest.mark.parametrize(
    "verb", ["reboot", "cleanup", "info", "ps", "plan start", "plan stop", "plugins"]
)
@pytest.mark.parametrize("kind", ["empty", "up", "newline", "option"])
def test_a_bad_name_for_every_other_verb(cli: Cli, kind: str, verb: str) -> None:
    cli(*verb.split(), "--", BAD_NAMES[kind], expect=2, says=["name"])


@pytest.mark.quick
def test_a_name_like_an_option(cli: Cli) -> None:
    cli("stop", "-web1", expect=2)
    cli("exec", "-web1", "--", "/bin/true", expect=(2, 125))


@pytest.mark.parametrize(
    "name", [*BAD_NAMES.values(), "web\0", "web1\0/../..", None, 7, b"web1", ["web1"]], ids=ascii
)
def test_a_bad_name_in_the_library(runtime: chrootfw.Runtime, name: object) -> None:
    with pytest.raises(chrootfw.InputError, match="name"):
        chrootfw.Instance(name, disk="/srv")  # type: ignore[arg-type]  # that is the point
    for verb in (
        runtime.start,
        runtime.stop,
        runtime.cleanup,
        runtime.reboot,
        runtime.info,
        runtime.processes,
    ):
        with pytest.raises(chrootfw.InputError, match="name"):
            verb(name)  # type: ignore[operator]


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", ["a", "7", "web1.example.org", "a_b-c.d", "X" * 200, "con", "web1..2"]
)
def test_good_names(make_chroot: MakeChroot, name: str) -> None:
    instance = make_chroot(name)
    instance.start()
    assert [each.name for each in instance.runtime.list()] == [name]
    instance.stop()
    assert instance.is_gone()


# -- usage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-plugins"],
        ["nonsense"],
        ["start"],
        ["start", "web1", "../web2"],
        ["start", "web1", "w*/"],
        ["start", "web1", "--nonsense"],
        ["stop", "web1", "--timeout"],
        ["stop", "web1", "--timeout", "soon"],
        ["stop", "web1", "--timeout", "-1"],
        ["stop", "web1", "--timeout", "nan"],
        ["start", "web1", "--set", "grace"],
        ["start", "web1", "--set", "grace=soon"],
        ["start", "web1", "--set", "grace='soon'"],
        ["start", "web1", "--set", "grace=-1"],
        ["start", "web1", "--set", "no_such_parameter=1"],
        ["start", "web1", "--init-script", "relative/path"],
        ["start", "web1", "--init-script", "/a/../b"],
        ["start", "web1", "--init-script", "/etc/chrootfw/init", "--no-init"],
        ["start", "web1", "--disk", "x/../relative"],
        ["start", "web1", "--disk", ""],
        ["exec", "web1"],
        ["plan", "web1"],
        ["plan", "explode", "web1"],
        ["powercycle"],
    ],
    ids=" ".join,
)
def test_wrong_usage(web1: Chroot, cli: Cli, argv: list[str]) -> None:
    expected = (2, 125) if argv[:1] == ["exec"] else (1, 2) if argv == ["powercycle"] else 2
    assert cli(*argv, expect=expected).stderr
    assert web1.state == "absent"
    web1.cli("start")


# -- definitions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("disk = ", "web1.toml"),
        ("disk = 'relative'", "relative"),
        ("disk = 7", "disk"),
        ("disk = '{disk}'\nbinds = 'no list'", "binds"),
        ("disk = '{disk}'\nbinds = ['no-colon']", "no-colon"),
        ("disk = '{disk}'\nbinds = ['relative:/mnt']", "relative:/mnt"),
        ("disk = '{disk}'\ngrace = 'soon'", "grace"),
        ("disk = '{disk}'\ngrace = true", "grace"),
        ("disk = '{disk}'\nholders = 'eat'", "holders"),
        ("disk = '{disk}'\nresolv_conf = 'guess'", "resolv_conf"),
        ("disk = '{disk}'\ngracee = 1", "gracee"),
        ("disk = '{disk}'\nname = 'web2'", "name"),
        ("disk = '{disk}'\ninit_script = true", "init_script"),
        ("disk = '{disk}'\ninit_script = 'relative'", "relative"),
        ("disk = '{disk}'\nplugins = ['no-such-plugin']", "no-such-plugin"),
        ("disk = '{disk}'\n[section]\nx = 1", "section"),
        ("grace = 1", "disk"),
        ("\udcff", "web1.toml"),
    ],
    ids=ascii,
)
def test_a_bad_definition(web1: Chroot, text: str, words: str) -> None:
    good = web1.definition.read_text()
    web1.definition.write_text(text.replace("{disk}", str(web1.disk)), errors="surrogateescape")
    refused = web1.cli("start", expect=(1, 2, 3) if words == "disk" else (1, 2))
    assert words in refused.stderr
    assert web1.is_gone()
    web1.definition.write_text(good)
    web1.cli("start")


def test_a_near_miss_of_a_parameter_is_suggested(web1: Chroot) -> None:
    assert "grace" in web1.cli("start", "--set", "gracce=1", expect=2).stderr.replace("gracce", "")


def writable_by_others(path: Path) -> None:
    path.chmod(0o666)


def another_users(path: Path) -> None:
    os.chown(path, 65534, 65534)


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


@pytest.mark.parametrize("spoil", [writable_by_others, another_users, a_link])
def test_a_definition_that_somebody_else_could_have_written(
    web1: Chroot, spoil: Callable[[Path], None]
) -> None:
    spoil(web1.definition)
    web1.cli("start", expect=1, says=[str(web1.definition)])
    assert web1.calls() == []


def test_a_directory_of_definitions_that_somebody_else_can_write(
    web1: Chroot, config_dir: Path
) -> None:
    config_dir.chmod(0o777)
    web1.cli("start", expect=1, says=[str(config_dir)])
    config_dir.chmod(0o755)
    web1.cli("start")


# -- disks ----------------------------------------------------------------------------------------------


def missing(place: Path) -> Path:
    return place / "missing"


def fifo(place: Path) -> Path:
    os.mkfifo(place / "fifo")
    return place / "fifo"


def unix_socket(place: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
    return place / "socket"


def character_device(place: Path) -> Path:
    return Path("/dev/null")


def host_root(place: Path) -> Path:
    return Path("/")


def link_to_host_root(place: Path) -> Path:
    (place / "link").symlink_to("/")
    return place / "link"


def above_the_run_directory(place: Path) -> Path:
    return place


def the_run_directory(place: Path) -> Path:
    return place / "run"


def in_the_run_directory(place: Path) -> Path:
    (place / "run/disk").mkdir()
    return place / "run/disk"


def dangling_link(place: Path) -> Path:
    (place / "dangling").symlink_to("nowhere")
    return place / "dangling"


def empty_file(place: Path) -> Path:
    (place / "empty").touch()
    return place / "empty"


def zeros(place: Path) -> Path:
    with (place / "zeros").open("wb") as file:
        file.truncate(16 << 20)
    return place / "zeros"


def rubbish(place: Path) -> Path:
    (place / "rubbish").write_bytes(bytes(range(256)) * 4096)
    return place / "rubbish"


def truncated(place: Path) -> Path:
    path = roots.make_image(place / "truncated", "ext4")
    os.truncate(path, path.stat().st_size // 2)
    return path


def corrupt(place: Path) -> Path:
    path = roots.make_image(place / "corrupt", "ext4")
    with path.open("r+b") as file:
        file.seek(2048)
        file.write(b"\xff" * (1 << 20))
    return path


def partitioned(place: Path) -> Path:
    path = zeros(place)
    subprocess.run(["sfdisk", "--quiet", str(path)], input=",\n", text=True, check=True)
    return path


def swap(place: Path) -> Path:
    path = zeros(place)
    subprocess.run(["mkswap", "--quiet", str(path)], check=True)
    return path


BAD_DISKS = [
    missing, fifo, unix_socket, character_device, host_root, link_to_host_root, above_the_run_directory, the_run_directory,
    in_the_run_directory, dangling_link, empty_file, zeros, rubbish, truncated, corrupt, partitioned, swap,
]  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("make", BAD_DISKS)
def test_a_bad_disk(web1: Chroot, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    disk = make(tmp_path)
    before = mount_table()
    web1.cli("start", "--disk", str(disk), expect=1, says=[str(disk)])
    assert mount_table() == before
    if make is in_the_run_directory:
        disk.rmdir()
    web1.cli("start")


def test_a_file_system_that_the_kernel_does_not_have_is_no_damage(
    make_chroot: MakeChroot, image: Callable[..., Path]
) -> None:
    refused = make_chroot(disk=image(), fstype="nosuchfs").cli("start", expect=1)
    assert "modprobe nosuchfs" in refused.stderr
    assert "damaged" not in refused.stderr


def test_an_image_mounted_elsewhere(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    mounted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    web1 = make_chroot(disk=image())
    place = mounted(tmp_path / "elsewhere", "-o", "loop", str(web1.disk))
    web1.cli("start", expect=1, says=[str(web1.disk), str(place)])
    subprocess.run(["umount", str(place)], check=True)
    web1.cli("start")


def test_a_block_device_mounted_elsewhere(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    attach: Callable[[Path], str],
    mounted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    device = attach(image())
    web1 = make_chroot(disk=Path(device))
    place = mounted(tmp_path / "elsewhere", device)
    web1.cli("start", expect=1, says=[device, str(place)])
    subprocess.run(["umount", str(place)], check=True)
    web1.cli("start")
    web1.cli("stop")


def test_an_image_attached_by_somebody_else(
    make_chroot: MakeChroot, image: Callable[..., Path], attach: Callable[[Path], str]
) -> None:
    web1 = make_chroot(disk=image())
    device = attach(web1.disk)
    web1.cli("start", expect=1, says=[str(web1.disk), device])


@pytest.mark.parametrize("alias", ["same path", "link", "hard link", "loop device"])
def test_an_image_that_another_instance_uses(
    make_chroot: MakeChroot,
    image: Callable[..., Path],
    attach: Callable[[Path], str],
    tmp_path: Path,
    alias: str,
) -> None:
    disk = image()
    path = tmp_path / "alias"
    web1 = make_chroot("web1", disk=disk)
    web1.start()
    if alias == "same path":
        path = disk
    elif alias == "link":
        path.symlink_to(disk)
    elif alias == "hard link":
        path.hardlink_to(disk)
    else:
        path = Path(attach(disk))
    web2 = make_chroot("web2", disk=path)
    web2.cli("start", expect=1, says=[str(path)])
    assert not mounts_below(web2.root)
    assert web1.state == "running"


def test_of_two_instances_on_one_image_started_at_once_one_wins(
    make_chroot: MakeChroot, image: Callable[..., Path], cli: Cli
) -> None:
    disk = image()
    both = [make_chroot(name, disk=disk) for name in ("web1", "web2")]
    starting = [cli.begin("start", instance.name) for instance in both]
    statuses = [cli.end(process, expect=(0, 1)).status for process in starting]
    assert sorted(statuses) == [0, 1]
    assert sorted(instance.state for instance in both) == ["absent", "running"]
    for instance in both:
        instance.cli("stop")
    roots.check_image(disk, "ext4")


# -- init scripts ---------------------------------------------------------------------------------------


def no_script(root: Path) -> None:
    (root / roots.INIT).unlink()


def not_executable(root: Path) -> None:
    (root / roots.INIT).chmod(0o644)


def a_directory(root: Path) -> None:
    no_script(root)
    (root / roots.INIT).mkdir()


def a_fifo(root: Path) -> None:
    no_script(root)
    os.mkfifo(root / roots.INIT, 0o755)


def a_device(root: Path) -> None:
    no_script(root)
    os.mknod(root / roots.INIT, 0o020755, os.makedev(1, 3))


def a_link_out_of_the_root(root: Path) -> None:
    """To a script of the host: it must not be found, let alone run."""
    roots.write_init(root.parent, f"#!/bin/sh\ntouch {root.parent}/escaped\n", name="host-script")
    no_script(root)
    (root / roots.INIT).symlink_to(root.parent / "host-script")


def a_loop_of_links(root: Path) -> None:
    no_script(root)
    (root / roots.INIT).symlink_to("init")


def dos_line_ends(root: Path) -> None:
    roots.write_init(root, roots.script().replace("\n", "\r\n"))


def empty(root: Path) -> None:
    roots.write_init(root, "")


def rubbish_script(root: Path) -> None:
    roots.write_init(root, b"\x7fELF\x00rubbish")


def without_interpreter(root: Path) -> None:
    roots.write_init(root, "#!/no/such/interpreter\n")


def its_own_interpreter(root: Path) -> None:
    roots.write_init(root, f"#!/{roots.INIT}\n")


def each_others_interpreters(root: Path) -> None:
    roots.write_init(root, "#!/srv/other\n")
    roots.write_init(root, f"#!/{roots.INIT}\n", name="srv/other")


def six_scripts(root: Path) -> None:
    make_scripts(root, 6)


def make_scripts(root: Path, count: int) -> None:
    """Scripts of which each names the next as its interpreter, and the last a shell."""
    roots.write_init(root, "#!/srv/script2\n")
    for number in range(2, count + 1):
        last = number == count
        roots.write_init(
            root,
            "#!/bin/sh\n" if last else f"#!/srv/script{number + 1}\n",
            name=f"srv/script{number}",
        )


def fails(root: Path) -> None:
    roots.write_init(root, roots.script(start=f"{roots.DAEMON}; exit 17"))


def is_killed(root: Path) -> None:
    roots.write_init(root, roots.script(start=f"{roots.DAEMON}; kill -9 $$"))


def hangs(root: Path) -> None:
    roots.write_init(
        root, roots.script(start=f"{roots.DAEMON}; trap '' TERM; while :; do sleep 1; done")
    )


BAD_SCRIPTS = {
    no_script: "",
    not_executable: "",
    a_directory: "",
    a_fifo: "",
    a_device: "",
    a_link_out_of_the_root: "",
    a_loop_of_links: "",
    dos_line_ends: "",
    empty: "",
    rubbish_script: "",
    without_interpreter: "",
    its_own_interpreter: "names itself as its interpreter",
    each_others_interpreters: "again as its interpreter",
    six_scripts: "five",
    fails: "17",
    is_killed: "9",
    hangs: "0.3",
}


@pytest.mark.quick
@pytest.mark.parametrize("spoil", BAD_SCRIPTS)
def test_a_bad_init_script(
    make_chroot: MakeChroot, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    web1 = make_chroot(start_timeout=0.3)
    spoil(web1.disk)

    refused = web1.cli("start", expect=1, says=["web1"])

    assert "/etc/chrootfw/init" in refused.stderr
    assert BAD_SCRIPTS[spoil] in refused.stderr
    assert web1.is_gone()
    assert web1.state == "absent"
    assert not (tmp_path / "escaped").exists()
    init = web1.disk / roots.INIT
    init.rmdir() if init.is_dir() else init.unlink(missing_ok=True)
    web1.define()
    web1.write_init(roots.script())
    web1.cli("start")


def test_five_scripts_that_are_each_others_interpreters(make_chroot: MakeChroot) -> None:
    """As many as the kernel runs."""
    web1 = make_chroot()
    make_scripts(web1.disk, 5)
    web1.cli("start")
    assert web1.state == "mounted"


def test_the_output_of_a_failing_script_is_shown(make_chroot: MakeChroot) -> None:
    web1 = make_chroot(init=roots.script(start="echo said before; echo complained >&2; exit 1"))
    refused = web1.cli("start", expect=1)
    assert "said before" in refused.stderr
    assert "complained" in refused.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_a_script_that_floods_its_output(make_chroot: MakeChroot, cli: Cli, status: int) -> None:
    """It ends by its own status, and the command needs no more memory than for a quiet one."""
    quiet = make_chroot("quiet")
    flood = make_chroot(
        "flood", init=roots.script(start=f"{roots.DAEMON}; yes | head -c 50000000; exit {status}")
    )
    assert memory_of(cli, "start", "quiet", expect=0) + (10 << 20) > memory_of(
        cli, "start", "flood", expect=status
    )
    assert flood.state == ("absent" if status else "running")
    flood.cli("stop")
    quiet.cli("stop")


def memory_of(cli: Cli, *argv: str, expect: int) -> int:
    """The largest resident size in bytes that a run of the command came to."""
    process = cli.begin(*argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == expect
    return usage.ru_maxrss * 1024


def test_a_daemon_that_keeps_the_output_open(make_chroot: MakeChroot) -> None:
    """The start does not wait for it, and it can go on writing, much, for ever."""
    writes = "until [ -e /srv/go ]; do usleep 1000; done; dd if=/dev/zero bs=1M count=5; echo x; touch /srv/wrote"
    daemon = f"/bin/sh -c '{writes}; sleep 3600' & echo $! > /run/daemon"
    web1 = make_chroot(init=roots.script(start=daemon, stop="true"), start_timeout=3600)
    web1.cli("start")
    writer = int((web1.root / "run/daemon").read_text())
    (web1.disk / "srv/go").touch()
    wait_until((web1.disk / "srv/wrote").exists, "it wrote")
    assert is_running(writer)
    web1.cli("stop")
    assert web1.is_gone()


# -- the run directory ----------------------------------------------------------------------------------


def test_a_run_directory_that_is_read_only(
    web1: Chroot, run_dir: Path, mounted: Callable[..., Path]
) -> None:
    mounted(run_dir, "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs")
    web1.cli("start", expect=1, says=[str(run_dir)])
    subprocess.run(["umount", str(run_dir)], check=True)
    web1.cli("start")


def fill(directory: Path) -> None:
    """Until not a byte fits any more."""
    with (directory / ".filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


@pytest.fixture
def small_run_dir(run_dir: Path, mounted: Callable[..., Path]) -> Iterator[Path]:
    """A run directory with little space."""
    yield mounted(run_dir, "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs")
    assert (
        cgroups_of(identity(run_dir)) == []
    )  # before it is unmounted, and nobody can tell whose they are


def test_a_full_run_directory_refuses_a_start(web1: Chroot, small_run_dir: Path) -> None:
    fill(small_run_dir)
    web1.cli("start", expect=1, says=[str(small_run_dir)])
    assert web1.is_gone()
    assert web1.calls() == []
    (small_run_dir / ".filler").unlink()
    web1.cli("start")
    web1.cli("stop")


def test_a_run_directory_that_fills_up_keeps_nobody_from_stopping(
    make_chroot: MakeChroot, image: Callable[..., Path], small_run_dir: Path
) -> None:
    web1 = make_chroot(disk=image())
    web1.cli("start")
    fill(small_run_dir)
    assert web1.state == "running"
    web1.cli("stop")
    assert web1.is_gone()
    roots.check_image(web1.disk, "ext4")


def test_a_run_directory_without_inodes(
    web1: Chroot, run_dir: Path, mounted: Callable[..., Path]
) -> None:
    mounted(run_dir, "-t", "tmpfs", "-o", "nr_inodes=4,mode=755", "tmpfs")
    web1.cli("start", expect=1, says=[str(run_dir)])
    assert web1.is_gone()


def test_a_run_directory_that_others_can_write(web1: Chroot, run_dir: Path) -> None:
    run_dir.chmod(0o777)
    web1.cli("start", expect=1, says=[str(run_dir)])
    run_dir.chmod(0o755)
    web1.cli("start")


def test_a_run_directory_of_another_user(web1: Chroot, run_dir: Path) -> None:
    os.chown(run_dir, 65534, 65534)
    web1.cli("start", expect=1, says=[str(run_dir)])
    os.chown(run_dir, 0, 0)
    web1.cli("start")


def test_a_run_directory_that_is_a_link(web1: Chroot, run_dir: Path, cli: Cli) -> None:
    link = run_dir.with_name("link")
    link.symlink_to(run_dir)
    web1.cli("start", env={"CHROOTFW_RUN_DIR": str(link)}, expect=1, says=[str(link)])
    web1.cli("start")


def test_a_run_directory_that_is_a_file(web1: Chroot, run_dir: Path) -> None:
    file = run_dir.with_name("file")
    file.touch()
    web1.cli("start", env={"CHROOTFW_RUN_DIR": str(file)}, expect=1, says=[str(file)])


@pytest.mark.parametrize("path", ["relative", "/tmp/../tmp/x"])
def test_a_run_directory_that_is_no_path(web1: Chroot, path: str) -> None:
    web1.cli("start", env={"CHROOTFW_RUN_DIR": path}, expect=(1, 2), says=[path])


# -- not root -------------------------------------------------------------------------------------------

#: Another user's, who may read everything: the interpreter may lie where only root looks.
NOT_ROOT = [
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=+dac_read_search",
]  # fmt: skip


@pytest.mark.parametrize("verb", ["start", "stop", "stop --force", "reboot", "cleanup"])
def test_not_root(web1: Chroot, verb: str) -> None:
    if verb != "start":
        web1.start()
    before = web1.state
    web1.cli(verb, expect=1, says=["root"], prefix=NOT_ROOT)
    assert web1.state == before
    web1.cli("start" if verb == "start" else "stop")


def test_exec_when_not_root(web1: Chroot) -> None:
    web1.start()
    web1.cli("exec", "--", "/bin/true", expect=125, says=["root"], prefix=NOT_ROOT)


def test_looking_when_not_root_does_not_crash(web1: Chroot, cli: Cli) -> None:
    web1.start()
    for verb in ("list", "info web1", "ps web1", "show web1", "tree web1", "verify", "node"):
        cli(*verb.split(), expect=(0, 1), prefix=NOT_ROOT)


# -- what is not there, and wrong states ----------------------------------------------------------------

VERBS = [
    "start",
    "stop",
    "stop --force",
    "reboot",
    "cleanup",
    "info",
    "ps",
    "show",
    "tree",
    "plan start",
    "plan stop",
]


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_instance(cli: Cli, run_dir: Path, verb: str) -> None:
    before = sorted(run_dir.iterdir())
    cli(*verb.split(), "nobody", expect=3, says=["nobody"])
    assert [
        path for path in run_dir.iterdir() if path not in before and path.name != ".locks"
    ] == []


@pytest.mark.parametrize("verb", ["exec", "shell"])
def test_an_unknown_instance_in_exec_and_shell(cli: Cli, verb: str) -> None:
    cli(
        verb,
        "nobody",
        *(["--", "/bin/true"] if verb == "exec" else []),
        expect=125,
        says=["nobody"],
    )


def test_an_unknown_instance_similar_to_a_known_one_is_suggested(web1: Chroot, cli: Cli) -> None:
    assert web1.state == "absent"
    cli("info", "web", expect=3, says=["web"])
    cli("info", "web11", expect=3, says=["web11"])


ABSENT = {
    "stop": 0,
    "stop --force": 0,
    "cleanup": 0,
    "reboot": 1,
    "info": 0,
    "ps": 0,
    "plan start": 0,
    "plan stop": 0,
}


@pytest.mark.parametrize("verb", ABSENT)
def test_a_defined_instance_that_is_absent(web1: Chroot, verb: str) -> None:
    web1.cli(verb, expect=ABSENT[verb])
    assert web1.calls() == []
    web1.cli("start")
    web1.cli("stop")


@pytest.mark.parametrize("state", ["running", "mounted", "held"])
@pytest.mark.parametrize("verb", ["start", "cleanup", "reboot"])
def test_a_verb_in_each_state(
    web1: Chroot, outside: Callable[..., "subprocess.Popen[str]"], state: str, verb: str
) -> None:
    expected = {
        ("running", "start"): 1, ("running", "cleanup"): 1, ("running", "reboot"): 0,
        ("mounted", "start"): 0, ("mounted", "cleanup"): 0, ("mounted", "reboot"): 0,
        ("held", "start"): 1, ("held", "cleanup"): 4, ("held", "reboot"): (1, 4),
    }[state, verb]  # fmt: skip
    if state == "mounted":
        web1.cli("start", "--no-init")
    else:
        web1.start()
    if state == "held":
        holder = outside("sleep", "3600", cwd=web1.root)
        web1.cli("stop", expect=4)
    assert web1.state == state

    done = web1.cli(verb, expect=expected)

    assert done.status == 0 or "web1" in done.brief
    if state == "held":
        holder.kill()
        holder.wait()
    web1.cli("stop")
    assert web1.is_gone()
    web1.cli("start")


def test_a_disk_is_given_from_the_callers_directory(web1: Chroot, cli: Cli) -> None:
    web1.definition.unlink()
    disk = web1.disk
    done = cli("start", "web1", "--disk", f"./{disk.name}", "--no-init", "-q", cwd=disk.parent)
    assert done.stdout == ""
    assert cli.json("info", "web1")["disk"] == str(disk)
    assert cli("stop", "web1", "--quiet").stdout == ""
