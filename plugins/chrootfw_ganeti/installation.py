"""Install chrootfw as Ganeti's chroot hypervisor on one node, and remove it again.

No file of Ganeti's is changed. An installation has five parts:

- a directory with chrootfw and its dependencies, for Ganeti's processes alone;
- a `.pth` file and a hook, where the node's Python reads `.pth` files;
- a command for administrators;
- a hook of Ganeti's before migrations, failovers and moves;
- the marker, without which no other part has any effect; it is written last.

Every file is put in place by rename(2), so that a crash leaves the old or the new file.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import chrootfw
from chrootfw.errors import ChrootfwError, InputError, NotSupported
from chrootfw.linux import mountinfo
from chrootfw_ganeti import guard, places

#: The packages that Ganeti's processes need, by import name. The system's own psutil is preferred:
#: Ganeti uses it too.
PACKAGES = (
    "chrootfw",
    "chrootfw_defaults",
    "chrootfw_hardened",
    "chrootfw_ganeti",
    "pluggy",
    "attr",
    "attrs",
)
#: The oldest psutil that is new enough.
_PSUTIL = (5, 9)
_PYTHON = (3, 11)
#: The places where Debian and others install the node daemon.
NODED = ("/usr/sbin/ganeti-noded", "/usr/local/sbin/ganeti-noded")

_PTH = (
    f"import os, sys; os.path.exists({places.MARKER!r}) and exec("
    '"try:\\n import chrootfw_ganeti_hook\\n'
    "except BaseException as error:\\n class Broken:\\n  def __getattr__(self, name):\\n"
    "   raise ImportError('chrootfw: the hook for Ganeti is missing or broken (' + "
    "type(self).why + '): run chrootfw ganeti install')\\n"
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
from chrootfw.cli.main import main
sys.exit(main())
"""


class Node:
    """The machine, or an image below `root`, on which files are installed."""

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
        """Return a path of the node as this process sees it."""
        return path if self.root == "/" else self.root + path

    def real(self, path: str) -> str:
        """Resolve the symbolic links of a path within the node.

        Args:
            path: An absolute path of the node.

        Returns:
            The path as this process sees it.

        Raises:
            ChrootfwError: The path has too many symbolic links.
        """
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

    def resolve_in_node(self, path: str) -> str:
        """Resolve a path of the node, and return it as the node sees it."""
        real = self.real(path)
        return real if self.root == "/" else real[len(self.root) :]

    def _interpreter(self, noded: str) -> str:
        with open(self.real(noded), "rb") as file:
            line = file.readline(256)
        words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
        if words and words[0].endswith("/env"):
            words = [f"/usr/bin/{words[1]}"]
        return words[0] if words else "/usr/bin/python3"

    def run(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the node's Python in an environment like a daemon's.

        Args:
            arguments: The arguments after `python -I`.
            seconds: How long it may take.

        Returns:
            The finished process with its output as text.

        Raises:
            ChrootfwError: The interpreter cannot be run, or did not end in time.
        """
        argv = [self.python, "-I", *arguments]
        if self.root != "/":
            argv = ["chroot", self.root, *argv]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
        try:
            return subprocess.run(
                argv, env=env, cwd="/", capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise ChrootfwError(
                f"the Python of Ganeti's node daemon, {self.path(self.python)}, did not end within "
                f"{seconds:g} s",
                hint="try again",
            ) from error
        except OSError as error:
            raise ChrootfwError(
                f"cannot run the Python of Ganeti's node daemon, {self.path(self.python)}: {error}",
                hint="is Ganeti installed here?",
            ) from error

    def ask(self, program: str, *arguments: str, seconds: float = 60) -> str:
        """Run a program on the node's Python.

        Args:
            program: The text of the program.
            arguments: Its arguments.
            seconds: How long it may take.

        Returns:
            The program's standard output.

        Raises:
            ChrootfwError: The program failed, or did not end in time.
        """
        done = self.run("-c", program, *arguments, seconds=seconds)
        if done.returncode:
            raise ChrootfwError(
                f"the Python of Ganeti's node daemon, {self.path(self.python)}, failed",
                done.stderr.strip().splitlines()[-5:],
            )
        return done.stdout

    @property
    def files(self) -> dict[str, str]:
        """Return the installed files by name, without the packages."""
        return {
            "marker": places.MARKER,
            "pth": f"{self.site_directory}/{places.PTH}",
            "hook": f"{self.site_directory}/{places.HOOK}",
            "command": places.COMMAND,
            **{f"{verb} hook": path for verb, path in places.MOVE_HOOKS.items()},
        }


def install(node: Node, *, force: bool = False) -> list[str]:
    """Install or repair.

    Args:
        node: The machine or image.
        force: Install although Ganeti's own class has an instance mounted on this node.

    Returns:
        The changes, in words; empty if the installation was complete.

    Raises:
        ChrootfwError: The installation is refused or fails.
    """
    _need_root("install chrootfw for Ganeti")
    if node.version < _PYTHON:
        raise NotSupported(
            f"Ganeti's node daemon runs on Python {node.version[0]}.{node.version[1]}; chrootfw "
            "needs 3.11 or newer",
            hint="Debian 12 and newer have it",
        )
    in_charge = all(os.path.exists(node.path(node.files[name])) for name in ("marker", "pth"))
    others = [] if force or in_charge else _instances_of_ganetis_class(node)
    if others:
        raise ChrootfwError(
            f"{_are(others)} mounted by Ganeti's own class: {', '.join(others)}",
            ["chrootfw would neither see nor stop them, and Ganeti would start them a second time"],
            "stop or move them with Ganeti first, or end and unmount what is below "
            f"{places.STOCK_DIR}; --force leaves them to you",
        )
    changed = _install_packages(node)
    wanted = _wanted(node)
    for name, (text, mode) in wanted.items():
        path = node.files[name]
        if name == "marker" and os.path.exists(node.path(path)):
            continue  # it may name an administrator's own class
        if _write(node.path(path), text, mode):
            changed.append(f"wrote {path}")
    return changed + _remove_from(node, _other_site_directories(node))


def _wanted(node: Node) -> Mapping[str, tuple[str, int]]:
    """Return the content and the mode of each file; the marker, which activates all, is last."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(f"{here}/hook.py", encoding="utf-8") as file:
        hook = file.read()
    with open(f"{here}/move_hook.py", encoding="utf-8") as file:
        move_hook = f"#!{node.python} -I\n{file.read()}"
    system = [path for path in node.site_directories if not path.startswith("/usr/local/")]
    command = _COMMAND.format(
        python=node.python,
        packages=f"{places.PACKAGES}/{places.CURRENT}",
        system=system,
        run_dir=places.RUN_DIR,
        config_dir=places.CONFIG_DIR,
    )
    return {
        "command": (command, 0o755),
        **{f"{verb} hook": (move_hook, 0o755) for verb in places.MOVE_HOOKS},
        "hook": (hook, 0o644),
        "pth": (_PTH, 0o644),
        "marker": (places.CLASS + "\n", 0o644),
    }


def remove(node: Node, *, force: bool = False) -> list[str]:
    """Remove every part of an installation.

    Args:
        node: The machine or image.
        force: Remove although instances are on this node.

    Returns:
        What was removed, in words.

    Raises:
        ChrootfwError: The removal is refused.
    """
    check_removal(node, force=force)
    removed = []
    for path in (places.MARKER, places.COMMAND, *places.MOVE_HOOKS.values()):
        try:
            os.unlink(node.path(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        removed.append(f"removed {path}")
    for path in places.MOVE_HOOKS.values():
        _remove_empty(node.path(os.path.dirname(path)))
    removed += _remove_from(node, [node.site_directory, *_other_site_directories(node)])
    removed += _remove_guards(node)
    if os.path.isdir(node.path(places.PACKAGES)):
        shutil.rmtree(node.path(places.PACKAGES))
        removed.append(f"removed {places.PACKAGES}")
    _remove_empty(node.path(os.path.dirname(places.MARKER)))
    return removed


def check_removal(node: Node, *, force: bool = False) -> None:
    """Refuse a removal that would leave instances to Ganeti's own class; see `remove`."""
    _need_root("remove chrootfw from Ganeti")
    present = [] if force else instances(node)
    if present:
        raise ChrootfwError(
            f"{_are(present)} on this node: {', '.join(present)}",
            ["Ganeti's own class would neither see nor stop them"],
            "stop or move them with Ganeti first; --force leaves them to you",
        )


def _other_site_directories(node: Node) -> list[str]:
    """List the directories of Debian's other Pythons, for files of earlier installations."""
    found = glob.glob("usr/local/lib/python3.*/dist-packages", root_dir=node.root)
    return [f"/{path}" for path in sorted(found) if f"/{path}" != node.site_directory]


def _remove_from(node: Node, directories: Sequence[str]) -> list[str]:
    """Remove the `.pth` file, the hook and its byte code from directories of Pythons."""
    removed = []
    for directory in directories:
        place = node.path(directory)
        ours = [name for name in (places.PTH, places.HOOK) if os.path.lexists(f"{place}/{name}")]
        byte_code = glob.glob(f"__pycache__/{places.HOOK.removesuffix('.py')}.*", root_dir=place)
        for name in [*ours, *byte_code]:
            os.unlink(f"{place}/{name}")
        removed += [f"removed {directory}/{name}" for name in ours]
        if ours or byte_code:
            _remove_empty(f"{place}/__pycache__")
            if (
                directory != node.site_directory
            ):  # the directory of the Python in use belongs to its package, even if it is empty
                _remove_empty(place)
    return removed


def _remove_guards(node: Node) -> list[str]:
    """Let Ganeti's own class mount every instance again."""
    place = node.real(places.STOCK_DIR)
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    removed = [name for name in names if guard.is_guard(f"{place}/{name}")]
    for name in removed:
        os.unlink(f"{place}/{name}")
    return [f"removed {places.STOCK_DIR}/{name}" for name in removed]


def instances(node: Node) -> list[str]:
    """List Ganeti's instances that are on this machine; an image has none."""
    if node.root != "/":
        return []
    from chrootfw.state.snapshot import read_names

    return sorted(read_names(places.RUN_DIR))


def _instances_of_ganetis_class(node: Node) -> list[str]:
    place = os.fsencode(node.real(places.STOCK_DIR))
    targets = [
        mount.mount_point
        for mount in mountinfo.list_mounts_below(place)
        if mount.mount_point != place
    ]
    return sorted({os.fsdecode(target[len(place) + 1 :].split(b"/")[0]) for target in targets})


def _are(names: list[str]) -> str:
    return f"{len(names)} instance{'s are' if len(names) > 1 else ' is'}"


def _install_packages(node: Node) -> list[str]:
    """Make a directory that is named by its contents, and point the link `current` to it.

    The directory before it stays, for the processes that still use it.
    """
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
    """Compile the packages, and check that the node's Python can import them.

    Raises:
        ChrootfwError: The packages cannot be compiled or imported.
    """
    done = node.run("-m", "compileall", "-q", place)
    if not done.returncode:
        done = node.run(
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "import psutil, chrootfw.runtime, chrootfw.state.node, chrootfw_ganeti.policy, "
            "chrootfw_ganeti.settings",
            place,
        )
    if done.returncode:
        raise ChrootfwError(
            "chrootfw cannot be used by the Python of Ganeti's node daemon, "
            f"{node.path(node.python)}",
            (done.stderr or done.stdout).strip().splitlines()[-3:],
            "psutil is missing there or too old: apt-get install python3-psutil"
            if "psutil" in done.stderr
            else "",
        )


def _is_enough(psutil: str) -> bool:
    numbers = tuple(int(part) for part in psutil.split(".")[:2] if part.isdigit())
    return numbers >= _PSUTIL


def _files(package: str) -> Iterator[tuple[str, str]]:
    """Yield the files of an installed package, sorted, without byte code and tests.

    Yields:
        Pairs of the path below the search path and the path here.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ChrootfwError(
            f"the package {package} is not installed for {sys.executable}",
            hint="install chrootfw again",
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
    """Record the digests of the directory's files, for `status`."""
    with open(f"{directory}/SHA256SUMS", "w", encoding="utf-8") as file:
        file.writelines(f"{digest}  {relative}\n" for relative, digest in _sums(directory))


def _sums(directory: str) -> Iterator[tuple[str, str]]:
    for here, below, files in os.walk(directory):
        below[:] = sorted(name for name in below if name != "__pycache__")
        for name in sorted(files):
            if name != "SHA256SUMS":
                with open(f"{here}/{name}", "rb") as file:
                    yield (
                        os.path.relpath(f"{here}/{name}", directory),
                        hashlib.sha256(file.read()).hexdigest(),
                    )


def _is_whole(directory: str) -> bool:
    return not damage(directory)


def damage(directory: str) -> list[str]:
    """List the files of an installation that are missing, changed or added."""
    try:
        with open(f"{directory}/SHA256SUMS", encoding="utf-8") as file:
            lines = [line.rstrip("\n").partition("  ") for line in file]
    except OSError:
        return ["SHA256SUMS"]
    sealed = {name: digest for digest, _, name in lines}
    now = dict(_sums(directory))
    return sorted(name for name in {*sealed, *now} if sealed.get(name) != now.get(name))


def _write(path: str, text: str, mode: int) -> bool:
    """Put a file in place in one step.

    Returns:
        Whether the file was missing or different before.
    """
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text and os.stat(path).st_mode & 0o777 == mode:
                return False
    except (OSError, UnicodeDecodeError):
        pass
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    fd = os.open(
        f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
    )
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
        pass  # it has other files, or does not exist


def _need_root(verb: str) -> None:
    if os.geteuid() != 0:
        from chrootfw.errors import PrivilegeError

        raise PrivilegeError(f"only the root user can {verb}", hint="run it with sudo, or as root")


def as_json(value: Any) -> str:
    """Format a result as JSON for jq(1)."""
    return json.dumps({"version": 1, **value}, indent=2)
