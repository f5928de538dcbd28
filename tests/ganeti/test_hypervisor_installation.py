"""``chrootfw ganeti install|remove|status`` in a node's tree of files: a Debian 12 with Ganeti, whatever this machine is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import node_system
import pytest
from hypervisor_fixtures import *  # noqa: F403

from chrootfw.errors import ChrootfwError
from chrootfw_ganeti import installation

HOOK = "usr/local/lib/python3.11/dist-packages/chrootfw_ganeti_hook.py"
PTH = "usr/local/lib/python3.11/dist-packages/zz_chrootfw_ganeti.pth"
MARKER = "etc/chrootfw/ganeti-hypervisor"
PACKAGES = "usr/local/lib/chrootfw-ganeti"
COMMAND = "usr/local/sbin/chrootfw-ganeti"
OURS = "chrootfw_ganeti.hypervisor:ChrootHypervisor"
STOCK = "ganeti.hypervisor.hv_chroot:ChrootManager"

#: What noded does first, and what it answers with for chroots.
ASK = (
    "import sys; sys.argv = [ARGV0]; sys.path.insert(0, '/usr/share/ganeti/3.0'); LINE"
    "from ganeti import constants, hypervisor; c = hypervisor.GetHypervisorClass(constants.HT_CHROOT); "
)
NAME = "print(c.__module__ + ':' + c.__name__)"


class Node:
    """A tree of files: an overlay over a node's system."""

    def __init__(self, root: Path, upper: Path, system: Path) -> None:
        self.root = root
        self.upper = upper
        self.system = system

    def chrootfw(self, *arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "chrootfw", "ganeti", *arguments, "--root", str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(
        self, program: str, *, argv0: str = "ganeti-noded", line: str = ""
    ) -> subprocess.CompletedProcess[str]:
        program = program.replace("ARGV0", repr(argv0)).replace("LINE", line)
        command = ["chroot", str(self.root), "/usr/bin/python3", "-c", program]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/bin"},
            cwd="/",
        )

    def uses(self) -> str:
        done = self.python(ASK + NAME)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def files(self) -> set[str]:
        """What is not as it was, apart from byte code that Python itself writes."""
        found = (path for path in self.upper.rglob("*") if not path.is_dir())
        return {
            str(path.relative_to(self.upper)) for path in found if path.parent.name != "__pycache__"
        }


@pytest.fixture(scope="session")
def debian_ganeti(
    private_namespace: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The system of a node of the test cluster."""
    place = tmp_path_factory.mktemp("ganeti")
    node_system.install_tools()
    image = node_system.layers("bookworm", "3.0.2")[-1]
    subprocess.run(["mount", "-o", "loop,ro", "-t", "squashfs", str(image), str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def node(tmp_path: Path, debian_ganeti: Path) -> Iterator[Node]:
    place = tmp_path / "node"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "node", str(place)], check=True)
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    over = f"lowerdir={debian_ganeti},upperdir={place}/upper,workdir={place}/work"
    subprocess.run(["mount", "-t", "overlay", "node", "-o", over, str(place / "root")], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", str(place / "root/proc")], check=True)
    subprocess.run(["mount", "--bind", "/dev", str(place / "root/dev")], check=True)
    node = Node(place / "root", place / "upper", debian_ganeti)
    yield node
    subprocess.run(["umount", "--recursive", str(place)], check=True)
    place.rmdir()


def checks(node: Node, status: int = 0) -> dict[str, dict[str, str]]:
    found = json.loads(node.chrootfw("status", "--json", status=status))
    return {check["name"]: check for check in found["checks"]}


def test_installed_and_removed(node: Node) -> None:
    before = node.files()
    assert node.uses() == STOCK
    assert "not installed" in node.chrootfw("status", status=1)
    said = node.chrootfw("install")
    assert "restart ganeti-noded" in said
    assert node.uses() == OURS
    assert {HOOK, PTH, MARKER, COMMAND} <= node.files()
    assert not [
        name
        for name in node.files() - before
        if "ganeti/" in name and not name.startswith((PACKAGES, "etc/ganeti/hooks/"))
    ]
    assert checks(node)["class"]["status"] == "ok"
    node.chrootfw("remove")
    assert node.uses() == STOCK
    assert node.files() == before
    assert not list(node.root.glob("usr/local/**/*chrootfw*"))
    assert not (node.root / "etc/chrootfw").exists()
    assert not list(node.root.glob("etc/ganeti/hooks/*"))
    assert "nothing to do" in node.chrootfw("remove")


def test_not_beside_instances_of_ganetis_own_class(node: Node) -> None:
    """Ours would not see them, and Ganeti would have it start them once more."""
    place = node.root / "run/ganeti/chroot-hypervisor/web1.example.com"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "web1", str(place)], check=True)
    before = node.files()
    said = node.chrootfw("install", status=1)
    assert "1 instance is mounted by Ganeti's own class: web1.example.com" in said
    assert node.files() == before
    node.chrootfw("install", "--force")
    assert node.uses() == OURS
    node.chrootfw("install")  # a repair, or a newer version, with the same instances beside it
    subprocess.run(["umount", str(place)], check=True)


def test_no_file_of_a_package_is_touched(node: Node) -> None:
    node.chrootfw("install")
    node.uses()
    assert not [name for name in node.files() if os.path.lexists(node.system / name)]


def test_a_second_install_changes_nothing(node: Node) -> None:
    node.chrootfw("install")
    link = os.readlink(node.root / PACKAGES / "current")
    times = {name: (node.upper / name).stat().st_mtime_ns for name in node.files()}
    assert "nothing to do: it is installed" in node.chrootfw("install")
    assert os.readlink(node.root / PACKAGES / "current") == link
    assert {name: (node.upper / name).stat().st_mtime_ns for name in times} == times


def test_an_install_repairs(node: Node) -> None:
    node.chrootfw("install")
    current = node.root / PACKAGES / "current"
    (current / "attr/_make.py").write_text("raise ImportError('damaged')\n")
    (node.root / HOOK).unlink()
    found = checks(node, status=1)
    assert "attr/_make.py" in found["packages"]["detail"]
    assert found["hook"]["status"] == "error"
    node.chrootfw("install")
    assert node.uses() == OURS
    assert checks(node)["packages"]["status"] == "ok"


def test_it_comes_back_after_an_upgrade_of_python_without_its_environment(node: Node) -> None:
    """The two files lie in the directory of a Python that is gone; what is installed repairs itself."""
    node.chrootfw("install")
    old = node.root / "usr/local/lib/python3.10/dist-packages"
    old.mkdir(parents=True)
    for name in (HOOK, PTH):
        (node.root / name).rename(old / Path(name).name)
    assert node.uses() == STOCK
    done = subprocess.run(
        ["chroot", str(node.root), f"/{COMMAND}", "ganeti", "install"],
        capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.uses() == OURS
    assert not old.exists()
    assert checks(node)["class"]["status"] == "ok"


def test_it_does_not_come_back_beside_instances_that_ganetis_own_class_has_started_since(
    node: Node,
) -> None:
    node.chrootfw("install")
    old = node.root / "usr/local/lib/python3.10/dist-packages"
    old.mkdir(parents=True)
    for name in (HOOK, PTH):
        (node.root / name).rename(old / Path(name).name)
    place = node.root / "run/ganeti/chroot-hypervisor/web1.example.com"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "web1", str(place)], check=True)
    assert "mounted by Ganeti's own class: web1.example.com" in node.chrootfw("install", status=1)
    subprocess.run(["umount", str(place)], check=True)
    node.chrootfw("install")
    assert node.uses() == OURS


def test_removing_takes_away_what_kept_ganetis_own_class_from_mounting(node: Node) -> None:
    node.chrootfw("install")
    place = node.root / "run/ganeti/chroot-hypervisor"
    place.mkdir(parents=True)
    (place / "web1.example.com").write_text("chrootfw: web1.example.com runs here\n")
    (place / "an-administrators-file").write_text("mine\n")
    node.chrootfw("remove")
    assert [path.name for path in place.iterdir()] == ["an-administrators-file"]


def test_an_administrators_own_class_stays(node: Node) -> None:
    node.chrootfw("install")
    own = node.root / "usr/local/lib/python3.11/dist-packages/site_chroots.py"
    own.write_text(
        "from chrootfw_ganeti.hypervisor import ChrootHypervisor\nclass Own(ChrootHypervisor): pass\n"
    )
    (node.root / MARKER).write_text("site_chroots:Own\n")
    node.chrootfw("install")
    assert node.uses() == "site_chroots:Own"
    assert checks(node)["class"]["status"] == "warning"


def test_our_packages_are_found_in_ganetis_processes_alone(node: Node) -> None:
    node.chrootfw("install")
    plain = node.python(
        "import sys, importlib.util as u; print([u.find_spec(n) for n in ('chrootfw', 'chrootfw_ganeti')])"
    )
    assert plain.stdout.strip() == "[None, None]"
    assert (
        "chrootfw_ganeti_hook"
        not in node.python("import sys; print(sys.path, sys.modules.get('attr'))").stdout
    )
    inside = node.python(
        ASK
        + "import attr, pluggy, psutil, simplejson, OpenSSL; print(attr.__file__, pluggy.__file__, psutil.__file__, sys.path)"
    )
    attr, pluggy, psutil, path = inside.stdout.split(" ", 3)
    assert attr.startswith("/usr/local/lib/chrootfw-ganeti/")
    assert pluggy.startswith("/usr/local/lib/chrootfw-ganeti/")
    assert psutil.startswith("/usr/lib/python3/dist-packages/")  # Ganeti's own, which we share
    assert "chrootfw" not in path


def test_older_packages_of_the_system_do_not_win(node: Node) -> None:
    """Debian's python3-pluggy and python3-attr are older than what chrootfw needs."""
    for name in ("attr", "attrs", "pluggy"):
        package = node.root / "usr/lib/python3/dist-packages" / name
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text("raise ImportError('too old')\n")
    node.chrootfw("install")
    assert node.uses() == OURS
    assert "too old" in node.python("import attr").stderr  # everybody else has the system's


def test_without_the_systems_psutil_ours_is_brought(node: Node) -> None:
    for entry in (node.root / "usr/lib/python3/dist-packages").glob("psutil*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    node.chrootfw("install")
    done = node.python(ASK + "import psutil; print(psutil.__file__)")
    assert done.stdout.startswith("/usr/local/lib/chrootfw-ganeti/")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("packages", "No such file or directory"),
        ("attrs", "ModuleNotFoundError"),
        ("class", "AttributeError"),
        ("module", "ModuleNotFoundError"),
        ("empty", "ValueError"),
        ("writable", "can be written by others than root"),
        ("syntax", "SyntaxError"),
    ],
)
def test_a_broken_installation_starts_no_chroot(node: Node, how: str, says: str) -> None:
    """And the rest of the node daemon goes on."""
    node.chrootfw("install")
    current = node.root / PACKAGES / "current"
    marker = node.root / MARKER
    if how == "packages":
        shutil.rmtree(node.root / PACKAGES)
    elif how == "attrs":
        shutil.rmtree(current / "attr")
    elif how == "syntax":
        (current / "chrootfw/errors.py").write_text("class\n")
    elif how == "writable":
        marker.chmod(0o666)
    else:
        marker.write_text(
            {"class": "chrootfw_ganeti.hypervisor:Nobody", "module": "nobody:X", "empty": ""}[how]
        )
    assert node.uses() == "chrootfw_ganeti_hook:BrokenChrootHypervisor"
    done = node.python(
        ASK
        + "import logging; logging.basicConfig(format='LOG %(message)s'); import ganeti.backend as b\n"
        "try: b.GetInstanceInfo('web1', 'chroot')\nexcept Exception as error: print(type(error).__name__)\n"
        "try: c.CheckParameterSyntax({})\nexcept Exception as error: print(type(error).__name__)\n"
        "print(hypervisor.GetHypervisorClass(constants.HT_KVM).__name__, c.GetAncillaryFiles())"
    )
    assert done.stdout.splitlines() == [
        "HypervisorError",
        "HypervisorError",
        "KVMHypervisor ([], [])",
    ], done.stderr
    assert "LOG chrootfw: No chroot can be managed on this node" in done.stderr
    assert says in done.stderr
    assert "chrootfw ganeti install" in done.stderr
    found = checks(node, status=1)
    assert found["class"]["status"] == "error"
    assert says in found["class"]["detail"]


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_without_its_hook_ganeti_does_not_start_at_all(node: Node, how: str) -> None:
    node.chrootfw("install")
    if how == "missing":
        (node.root / HOOK).unlink()
    else:
        (node.root / HOOK).write_text("raise RuntimeError('half written')\n")
    done = node.python(ASK + NAME)
    assert done.returncode == 1
    assert "ImportError: chrootfw: the hook for Ganeti is missing or broken" in done.stderr
    assert "run chrootfw ganeti install" in done.stderr
    assert node.python("print('all else runs')").stdout == "all else runs\n"
    assert "ganeti-noded would not start" in checks(node, status=1)["class"]["detail"]


def test_without_the_marker_it_has_no_effect(node: Node) -> None:
    node.chrootfw("install")
    (node.root / MARKER).unlink()
    assert node.uses() == STOCK
    assert "chrootfw_ganeti_hook" not in node.python("import sys; print(list(sys.modules))").stdout


def test_a_killed_installation_is_all_or_nothing(node: Node) -> None:
    """Killed before each of the names that it puts in place: the class is Ganeti's own or ours, never a broken one."""
    command = [sys.executable, "-c", KILLED_AT, "", str(node.root)]
    ends = []
    for number in range(1, 40):
        command[3] = str(number)
        done = subprocess.run(command, capture_output=True, text=True)
        ends.append(done.returncode)
        assert node.uses() in (STOCK, OURS), number
        if done.returncode == 0:
            break
        node.chrootfw("remove")
        assert node.uses() == STOCK
    assert ends.count(-9) == len(ends) - 1 >= 5
    assert ends[-1] == 0


#: ``install``, killed when it renames for the nth time.
KILLED_AT = """
import os, signal, sys
from chrootfw_ganeti import installation
rename, left = os.rename, [int(sys.argv[1])]
def dying(*args, **how):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*args, **how)
os.rename = dying
installation.install(installation.Node(sys.argv[2]))
"""


def test_status_tells_of_a_daemon_from_before(
    node: Node, outside: Callable[..., subprocess.Popen[str]]
) -> None:
    """A program called ganeti-noded in the node's root."""
    place = node.root / "usr/local/bin"
    (place / "ganeti-noded").write_text("import time\nprint('up', flush=True)\ntime.sleep(3600)\n")

    def noded() -> subprocess.Popen[str]:
        process = outside(
            "chroot",
            str(node.root),
            "/usr/bin/python3",
            "/usr/local/bin/ganeti-noded",
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    before = noded()
    node.chrootfw("install")
    running = checks(node)["running"]
    assert running["status"] == "warning"
    assert f"pid {before.pid}" in running["detail"]
    assert "before the last change" in running["detail"]
    before.kill()
    before.wait()
    after = noded()
    running = checks(node)["running"]
    assert running["status"] == "ok"
    assert f"pid {after.pid}" in running["detail"]


def test_the_command_for_people_sees_ganetis_instances(node: Node) -> None:
    node.chrootfw("install")
    done = subprocess.run(
        ["chroot", str(node.root), "/usr/local/sbin/chrootfw-ganeti", "node", "--json"],
        capture_output=True, text=True, env={"PYTHONPATH": "/nowhere", "PATH": "/usr/sbin:/usr/bin"}, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["node"]["memory_total_mib"] > 0


def test_python_starts_hardly_slower(node: Node) -> None:
    """What every Python process of the node imports because of us: two small modules of ours and __future__, no more."""
    listing = "import sys; print('\\n'.join(sys.modules))"
    before = set(node.python(listing).stdout.split())
    node.chrootfw("install")
    assert set(node.python(listing).stdout.split()) - before <= {
        "chrootfw_ganeti_hook",
        "__future__",
    }


def test_the_nodes_python_has_a_time_limit() -> None:
    with pytest.raises(ChrootfwError, match=r"did not end within 0\.5 s"):
        installation.Node().ask("import time; time.sleep(60)", seconds=0.5)


@pytest.mark.parametrize("what", ["install", "status"])
def test_the_parameters_are_reset_at_a_removal_alone(node: Node, what: str) -> None:
    assert "--cluster belongs to remove" in node.chrootfw(what, "--cluster", status=2)
