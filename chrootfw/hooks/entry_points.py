"""The entry points of installed distributions, read from their files.

``importlib.metadata`` does the same, and importing it costs a command 40 ms: email, zipfile,
tempfile and more. Where something is installed in a way that needs it (a zip file or an egg on the
path, a custom finder) it is called.
The formats: https://packaging.python.org/en/latest/specifications/entry-points/ and
.../recording-installed-packages/.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from chrootfw.errors import ChrootfwError

#: The packages that come with chrootfw.
OWN = ("chrootfw", "chrootfw_defaults", "chrootfw_hardened", "chrootfw_ganeti")


def not_installed(tree: str) -> ChrootfwError:
    """Return the error for a chrootfw that runs from a source tree without being installed.

    Args:
        tree: The path of the source tree.
    """
    import shlex

    from chrootfw.errors import ChrootfwError

    if sys.prefix != sys.base_prefix:
        hint = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(tree)}"
    else:
        hint = (
            f"cd {shlex.quote(tree)} && python3 -m venv .venv && .venv/bin/pip install . && "
            ".venv/bin/chrootfw --help"
        )
    return ChrootfwError("chrootfw is run from its source tree without being installed", hint=hint)


class EntryPoint:
    """Be one entry point.

    Args:
        name: The name in its group.
        value: ``module:attribute``.
        distribution: The distribution that has it.
        version: The version of the distribution.
    """

    __slots__ = ("distribution", "name", "value", "version")

    def __init__(self, name: str, value: str, distribution: str, version: str) -> None:
        self.name = name
        self.value = value
        self.distribution = distribution
        self.version = version

    @property
    def module(self) -> str:
        """Return the name of the module."""
        return self.value.partition("[")[0].partition(":")[0].strip()

    def load(self) -> object:
        """Import what it names, as ``load``."""
        return load(self.value.partition("[")[0])


def load(reference: str) -> object:
    """Import ``module:attribute`` or ``module``.

    Args:
        reference: The reference.

    Returns:
        The object.

    Raises:
        Exception: Whatever the import raises, and ``AttributeError``.
    """
    module, _, attribute = reference.partition(":")
    module = module.strip()
    found: object = importlib.import_module(module)
    for part in filter(None, attribute.strip().split(".")):
        found = getattr(found, part)
    return found


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, in the order of ``sys.path``.

    Of distributions of one name only the first counts.

    Args:
        group: The group's name.

    Raises:
        OSError: A disk fails; no plugin is left out because of that.
    """
    if any(
        hasattr(finder, "find_distributions") and finder is not PathFinder
        for finder in sys.meta_path
    ):
        return _by_importlib(group)
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except NotADirectoryError:  # a zip file
            return _by_importlib(group)
        except (FileNotFoundError, PermissionError):  # nothing is imported from there either
            continue
        if place.lower().endswith(".egg"):
            return _by_importlib(group)
        for name in names:
            stem, dot, kind = name.rpartition(".")
            if not dot or kind not in ("dist-info", "egg-info"):
                continue
            known = _normalized(stem.partition("-")[0])
            if known in seen:
                continue
            seen.add(known)
            directory = os.path.join(place, name)
            text = _read(f"{directory}/entry_points.txt")
            if group in text:
                points = list(_parse(text, group))
                of = _identity(directory) if points else ("", "")
                found += [EntryPoint(point, value, *of) for point, value in points]
    return found


def _by_importlib(group: str) -> list[EntryPoint]:
    from importlib import metadata

    points = metadata.entry_points(group=group)
    return [
        EntryPoint(p.name, p.value, *((p.dist.name, p.dist.version) if p.dist else ("", "")))
        for p in points
    ]


def _normalized(name: str) -> str:
    """As packaging has it: case, and which of ``-_.`` stands there, make no difference."""
    return "_".join(filter(None, name.lower().replace("-", "_").replace(".", "_").split("_")))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
    ):  # as importlib.metadata has it
        return ""


def _parse(text: str, group: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == group and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if equals:
                yield name.strip(), value.strip()


def _identity(directory: str) -> tuple[str, str]:
    """Name and version, as the distribution itself writes them."""
    text = _read(f"{directory}/METADATA") or _read(f"{directory}/PKG-INFO")
    header = text.partition("\n\n")[0].splitlines()

    def value(key: str) -> str:
        return next(
            (
                line.partition(":")[2].strip()
                for line in header
                if line.lower().startswith(f"{key}:")
            ),
            "",
        )

    return value("name"), value("version")
