"""Installs chrootfw as Ganeti's chroot hypervisor on one node, and takes it away again. No file of Ganeti's is touched.

What is installed: a directory with chrootfw and what it needs, for Ganeti's processes alone; a ``.pth`` file and a hook where the node's
Python looks for ``.pth`` files; a command for people; last the marker, without which nothing of it has any effect.
Every file is put in place by rename(2), so that a crash leaves the old or the new one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import chrootfw
from chrootfw.errors import ChrootfwError, InputError, NotSupported
from chrootfw.system import mounts
from chrootfw_ganeti import places

#: What Ganeti's processes need, by import name. psutil is the system's own where it has one: Ganeti uses that too.
PACKAGES = ("chrootfw", "chrootfw_defaults", "chrootfw_hardened", "chrootfw_ganeti", "pluggy", "attr", "attrs")
#: Which psutil is new enough.
_PSUTIL = (5, 9)
_PYTHON = (3, 11)
#: Where Ganeti's own class mounts its instances.
_STOCK_DIR = "/var/run/ganeti/chroot-hypervisor"
#: Where Debian and others put the node daemon.
NODED = ("/usr/sbin/ganeti-noded", "/usr/local/sbin/ganeti-noded")

_PTH = (
    f"import os, sys; os.path.exists({places.MARKER!r}) and exec("
    '"try:\\n import chrootfw_ganeti_hook\\n'
    "except BaseException as error:\\n class Broken:\\n  def __getattr__(self, name):\\n"
    "   raise ImportError('chrootfw: the hook for Ganeti is missing or broken (' + type(self).why + '): run chrootfw "
    "ganeti install')\\n"
    " Broken.why = repr(error)\\n"
    " sys.modules['ganeti.hypervisor.hv_chroot'] = Broken()\")\n"
)

_COMMAND = """#!{python} -IS
# chrootfw for the instances of Ganeti on this node; made by "chrootfw ganeti install".
import os
import sys
sys.path.insert(0, os.path.realpath({packages!r}))
sys.path.extend({system!r})
os.environ.setdefault("CHROOTFW_RUN_DIR", {run_dir!r})
os.environ.setdefault("CHROOTFW_CONFIG_DIR", {config_dir!r})
from chrootfw.cli import main
sys.exit(main())
"""


class Node:
    """The machine, or a tree of files of one below ``root`` (an image), in which Ganeti's Python is asked and files are put."""

    def __init__(self, root: str = "/") -> None:
        if not root.startswith("/") or os.path.normpath(root) != root:
            raise InputError(f"--root {root!r} is not an absolute, normalised path")
        self.root = root
        noded = next((path for path in NODED if os.path.exists(self.real(path))), None)
        self.noded = noded
        self.python = self._interpreter(noded) if noded else "/usr/bin/python3"
        facts = self.ask(
            "import json, site, sys\n"
            "try:\n import psutil; p = psutil.__version__\nexcept ImportError: p = ''\n"
            "print(json.dumps([sys.version_info[:2], site.getsitepackages(), p]))"
        )
        version, directories, psutil = json.loads(facts)
        self.version: tuple[int, int] = (version[0], version[1])
        self.site_directories: list[str] = directories
        self.psutil: str = psutil
        local = [path for path in directories if path.startswith("/usr/local/")]
        self.site_directory = (local or directories)[0]

    def path(self, path: str) -> str:
        """A path of the node as this process sees it."""
        return path if self.root == "/" else self.root + path

    def real(self, path: str) -> str:
        """``path`` with the symbolic links of the node followed in the node."""
        for _ in range(40):
            walked = ""
            for part in path.split("/")[1:]:
                walked += f"/{part}"
                if os.path.islink(self.path(walked)):
                    target = os.path.join(os.path.dirname(walked), os.readlink(self.path(walked)))
                    path = os.path.normpath(target + path[len(walked) :])
                    break
            else:
                return self.path(path)
        raise ChrootfwError(f"{self.path(path)}: too many symbolic links")

    def inside(self, path: str) -> str:
        """The real path of a path of the node, as the node sees it."""
        real = self.real(path)
        return real if self.root == "/" else real[len(self.root) :]

    def _interpreter(self, noded: str) -> str:
        with open(self.real(noded), "rb") as file:
            line = file.readline(256)
        words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
        if words and words[0].endswith("/env"):
            words = [f"/usr/bin/{words[1]}"]
        return words[0] if words else "/usr/bin/python3"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The node's Python, in an environment like a daemon's."""
        argv = [self.python, *arguments]
        if self.root != "/":
            argv = ["chroot", self.root, *argv]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
        try:
            return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ChrootfwError(
                f"cannot run the Python of Ganeti's node daemon, {self.path(self.python)}: {error}",
                hint="is Ganeti installed here?",
            ) from error

    def ask(self, program: str, *arguments: str) -> str:
        """What a program prints on the node's Python. Raises ``ChrootfwError`` when it fails."""
        done = self.run("-c", program, *arguments)
        if done.returncode:
            raise ChrootfwError(
                f"the Python of Ganeti's node daemon, {self.path(self.python)}, failed",
                done.stderr.strip().splitlines()[-5:],
            )
        return done.stdout

    @property
    def files(self) -> dict[str, str]:
        """What is installed, by name, apart from the packages."""
        return {
            "marker": places.MARKER,
            "pth": f"{self.site_directory}/{places.PTH}",
            "hook": f"{self.site_directory}/{places.HOOK}",
            "command": places.COMMAND,
        }


def install(node: Node, *, force: bool = False) -> list[str]:
    """Install or repair: what was changed, in words; nothing when all was as it should be. Raises ``ChrootfwError``.

    Refuses while Ganeti's own class has an instance mounted on this node, unless ``force``.
    """
    _need_root("install chrootfw for Ganeti")
    if node.version < _PYTHON:
        raise NotSupported(
            f"Ganeti's node daemon runs on Python {node.version[0]}.{node.version[1]}; chrootfw needs 3.11 or newer",
            hint="Debian 12 and newer have it",
        )
    in_charge = os.path.exists(node.path(places.MARKER))
    others = [] if force or in_charge else _instances_of_ganetis_class(node)
    if others:
        raise ChrootfwError(
            f"{_are(others)} mounted by Ganeti's own class: {', '.join(others)}",
            ["chrootfw would neither see nor stop them, and Ganeti would start them a second time"],
            f"stop or move them with Ganeti first, or end and unmount what is below {_STOCK_DIR}; --force leaves them to you",
        )
    changed = _install_packages(node)
    here = os.path.dirname(os.path.abspath(__file__))
    with open(f"{here}/hook.py", encoding="utf-8") as file:
        hook = file.read()
    wanted = _wanted(node, hook)
    for name in ("command", "hook", "pth", "marker"):  # the marker last: it switches the others on
        path = node.files[name]
        text, mode = wanted[name]
        if name == "marker" and os.path.exists(node.path(path)):
            continue  # it may name an administrator's own class
        if _write(node.path(path), text, mode):
            changed.append(f"wrote {path}")
    return changed


def _wanted(node: Node, hook: str) -> Mapping[str, tuple[str, int]]:
    system = [path for path in node.site_directories if not path.startswith("/usr/local/")]
    command = _COMMAND.format(
        python=node.python,
        packages=f"{places.PACKAGES}/{places.CURRENT}",
        system=system,
        run_dir=places.RUN_DIR,
        config_dir=places.CONFIG_DIR,
    )
    return {
        "marker": (places.CLASS + "\n", 0o644),
        "pth": (_PTH, 0o644),
        "hook": (hook, 0o644),
        "command": (command, 0o755),
    }


def remove(node: Node, *, force: bool = False) -> list[str]:
    """Take everything away: what was removed. Refuses while instances are on this node, unless ``force``."""
    _need_root("remove chrootfw from Ganeti")
    present = [] if force else instances(node)
    if present:
        raise ChrootfwError(
            f"{_are(present)} on this node: {', '.join(present)}",
            ["Ganeti's own class would neither see nor stop them"],
            "stop or move them with Ganeti first; --force leaves them to you",
        )
    removed = []
    for name in ("marker", "pth", "hook", "command"):
        path = node.files[name]
        try:
            os.unlink(node.path(path))
        except FileNotFoundError:
            continue
        removed.append(f"removed {path}")
    cache = node.path(f"{node.site_directory}/__pycache__")
    stem = places.HOOK.removesuffix(".py")
    for entry in sorted(os.listdir(cache)) if os.path.isdir(cache) else ():
        if entry.startswith(f"{stem}."):
            os.unlink(f"{cache}/{entry}")
    if os.path.isdir(node.path(places.PACKAGES)):
        shutil.rmtree(node.path(places.PACKAGES))
        removed.append(f"removed {places.PACKAGES}")
    for directory in (cache, node.path(node.site_directory), node.path(os.path.dirname(places.MARKER))):
        _remove_empty(directory)
    return removed


def instances(node: Node) -> list[str]:
    """The names of Ganeti's instances that are on this machine; none in an image."""
    if node.root != "/":
        return []
    from chrootfw import inventory

    return sorted(inventory.Survey(places.RUN_DIR).names())


def _instances_of_ganetis_class(node: Node) -> list[str]:
    place = os.fsencode(node.real(_STOCK_DIR))
    targets = [mount.mount_point for mount in mounts.below(place) if mount.mount_point != place]
    return sorted({os.fsdecode(target[len(place) + 1 :].split(b"/")[0]) for target in targets})


def _are(names: list[str]) -> str:
    return f"{len(names)} instance{'s are' if len(names) > 1 else ' is'}"


def _install_packages(node: Node) -> list[str]:
    """A directory named by what is in it, and the link ``current`` to it. The one before stays for who still uses it."""
    top = node.path(places.PACKAGES)
    link = f"{top}/{places.CURRENT}"
    names = [*PACKAGES, *(() if _is_enough(node.psutil) else ("psutil",))]
    name = f"{chrootfw.__version__}-{_digest(names)}-py{node.version[0]}.{node.version[1]}"
    before = os.readlink(link) if os.path.islink(link) else ""
    if before == name and _is_whole(f"{top}/{name}"):
        return []
    os.makedirs(top, mode=0o755, exist_ok=True)
    staged = f"{top}/.new"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        os.mkdir(staged, 0o755)
        for package in names:
            for relative, source in _files(package):
                target = f"{staged}/{relative}"
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                shutil.copyfile(source, target)
                os.chmod(target, 0o644)
        _try(node, f"{places.PACKAGES}/.new")
        _seal(staged)
        shutil.rmtree(f"{top}/{name}", ignore_errors=True)
        os.rename(staged, f"{top}/{name}")
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if not before:
            _remove_empty(top)
        raise
    os.symlink(name, f"{link}.new")
    os.rename(f"{link}.new", link)
    for entry in os.listdir(top):
        if entry not in (name, before, places.CURRENT):
            shutil.rmtree(f"{top}/{entry}")
    return [f"installed chrootfw {chrootfw.__version__} in {places.PACKAGES}/{name}"]


def _try(node: Node, place: str) -> None:
    """Compile the packages, and see that the node's Python can import them. Raises ``ChrootfwError``."""
    done = node.run("-m", "compileall", "-q", place)
    if not done.returncode:
        done = node.run(
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "import psutil, chrootfw.runtime, chrootfw.node, chrootfw_ganeti.policy, chrootfw_ganeti.settings",
            place,
        )
    if done.returncode:
        raise ChrootfwError(
            f"chrootfw cannot be used by the Python of Ganeti's node daemon, {node.path(node.python)}",
            (done.stderr or done.stdout).strip().splitlines()[-3:],
            "psutil is missing there or too old: apt-get install python3-psutil" if "psutil" in done.stderr else "",
        )


def _is_enough(psutil: str) -> bool:
    numbers = tuple(int(part) for part in psutil.split(".")[:2] if part.isdigit())
    return numbers >= _PSUTIL


def _files(package: str) -> Iterator[tuple[str, str]]:
    """``(path below the top, path here)`` of an installed package, sorted; no byte code, no tests."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ChrootfwError(
            f"the package {package} is not installed for {sys.executable}", hint="install chrootfw again"
        )
    base = spec.submodule_search_locations[0]
    for directory, below, files in os.walk(base):
        below[:] = sorted(name for name in below if name not in ("__pycache__", "tests"))
        for file in sorted(files):
            if not file.endswith((".pyc", ".pyi")):
                path = f"{directory}/{file}"
                yield f"{package}/{os.path.relpath(path, base)}", path


def _digest(names: list[str]) -> str:
    found = hashlib.sha256()
    for package in names:
        for relative, path in _files(package):
            with open(path, "rb") as file:
                found.update(f"{relative}\0".encode() + hashlib.sha256(file.read()).digest())
    return found.hexdigest()[:12]


def _seal(directory: str) -> None:
    """Write down what is in the directory, for ``status``."""
    with open(f"{directory}/SHA256SUMS", "w", encoding="utf-8") as file:
        file.writelines(f"{digest}  {relative}\n" for relative, digest in _sums(directory))


def _sums(directory: str) -> Iterator[tuple[str, str]]:
    for here, below, files in os.walk(directory):
        below[:] = sorted(name for name in below if name != "__pycache__")
        for name in sorted(files):
            if name != "SHA256SUMS":
                with open(f"{here}/{name}", "rb") as file:
                    yield os.path.relpath(f"{here}/{name}", directory), hashlib.sha256(file.read()).hexdigest()


def _is_whole(directory: str) -> bool:
    return not damage(directory)


def damage(directory: str) -> list[str]:
    """The files of an installation that are missing, changed, or were not there."""
    try:
        with open(f"{directory}/SHA256SUMS", encoding="utf-8") as file:
            lines = [line.rstrip("\n").partition("  ") for line in file]
    except OSError:
        return ["SHA256SUMS"]
    sealed = {name: digest for digest, _, name in lines}
    now = dict(_sums(directory))
    return sorted(name for name in {*sealed, *now} if sealed.get(name) != now.get(name))


def _write(path: str, text: str, mode: int) -> bool:
    """Put a file in place in one step; whether it was another before."""
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text and os.stat(path).st_mode & 0o777 == mode:
                return False
    except (OSError, UnicodeDecodeError):
        pass
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, mode)
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(f"{path}.new", path)
    return True


def _remove_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass  # others have something in it, or it is not there


def _need_root(verb: str) -> None:
    if os.geteuid() != 0:
        from chrootfw.errors import PrivilegeError

        raise PrivilegeError(f"only root can {verb}", hint="run it with sudo, or as root")


def as_json(value: Any) -> str:
    """For people who read it with jq."""
    return json.dumps({"version": 1, **value}, indent=2)
