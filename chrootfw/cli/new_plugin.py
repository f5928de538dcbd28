"""A new plugin as a project of its own: what ``chrootfw new-plugin`` writes.

The templates lie in ``templates/`` beside this file (``string.Template``). What they make passes
its own tests at once.
"""

from __future__ import annotations

import keyword
import os
import pkgutil
import re
import shutil
from importlib import resources
from string import Template

import chrootfw
from chrootfw.errors import ChrootfwError, InputError
from chrootfw.hooks import entry_points, registry
from chrootfw.runtime import Runtime

#: Each template, and the file that is made of it.
FILES = {
    "gitignore.in": ".gitignore",
    "README.md.in": "README.md",
    "module.py.in": "$module.py",
    "pyproject.toml.in": "pyproject.toml",
    "test_module.py.in": "tests/test_$plugin.py",
}
_LONGEST = 60


def write(name: str, directory: str | None = None) -> tuple[str, list[str]]:
    """Write the project ``chrootfw-NAME`` into a directory, ``./chrootfw-NAME`` unless it is given.

    Returns the directory's absolute path and the files in it, relative to it. The directory may
    exist if it is empty. A failure leaves nothing. Raises ``InputError`` for the name,
    ``ChrootfwError`` when the directory cannot be written.
    """
    check_name(name)
    target = os.path.abspath(directory or f"chrootfw-{name}")
    plugin = name.replace("-", "_")
    words = {
        "project": f"chrootfw-{name}",
        "module": f"chrootfw_{plugin}",
        "plugin": plugin,
        "minor": oldest(chrootfw.__version__),
    }
    templates = resources.files("chrootfw") / "cli/templates"
    files = {
        Template(file).substitute(words): Template(
            (templates / template).read_text("utf-8")
        ).substitute(words)
        for template, file in FILES.items()
    }
    try:
        _put(target, files)
    except OSError as error:
        stays = getattr(error, "__notes__", ())
        raise ChrootfwError(
            f"cannot write the plugin into {target}: {error.strerror}",
            stays,
            "name another directory with --directory"
            if stays
            else "nothing was written; name another directory with --directory",
        ) from error
    return target, sorted(files)


def oldest(version: str) -> str:
    """Return the oldest chrootfw that a plugin written with ``version`` may require.

    That is the first release of its minor version. An unreleased version is older: it requires
    itself.
    """
    return ".".join(version.split(".")[:2]) if re.fullmatch(r"[\d.]+", version) else version


def check_name(name: str) -> None:
    """Raise unless the name fits a plugin.

    ``chrootfw-NAME`` must be a valid distribution, and ``chrootfw_NAME`` a valid module, beside
    chrootfw's own.

    Args:
        name: The name.

    Raises:
        InputError: It does not fit.
    """
    if len(name) > _LONGEST or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        near = (
            re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("chrootfw"))
            .strip("-")[:_LONGEST]
            .strip("-")
        )
        raise InputError(
            f"{name!r} is not a valid name for a plugin: a lower-case letter, then "
            f"letters, digits and single hyphens, at most {_LONGEST}",
            hint=f"perhaps {near}" if re.match("[a-z]", near) else "for example quit-first",
        )
    if name.startswith("chrootfw-"):
        raise InputError(
            f"{name!r} begins with chrootfw-, which is put before it",
            hint=f"perhaps {name.removeprefix('chrootfw-')}",
        )
    plugin = name.replace("-", "_")
    if keyword.iskeyword(plugin):
        raise InputError(
            f"{name!r} is a word of Python's own", hint="name what the plugin does, as quit-first"
        )
    if plugin in _taken():
        raise InputError(
            f"{name!r} is a name of chrootfw's own",
            hint="chrootfw plugins and parameters list them",
        )


def _taken() -> set[str]:
    """Modules of chrootfw, what comes after ``chrootfw_`` in its packages, and its parameters."""
    own_modules = {module.name for module in pkgutil.iter_modules(chrootfw.__path__)}
    modules = {*registry.DEFAULTS}
    for group in (registry.GROUP, registry.INSTANCE_GROUP):
        modules |= {
            point.module
            for point in entry_points.entry_points(group)
            if point.distribution == "chrootfw"
        }
    packages = {module.partition(".")[0].removeprefix("chrootfw_") for module in modules}
    others = [
        record.name
        for record, _ in registry.find_plugins(registry.GROUP)
        if record.origin != "first-party"
    ]
    parameters = {
        parameter.name for _, parameter in Runtime(discover=True, without=others).parameters()
    }
    return {"chrootfw", "ganeti", "name"} | own_modules | packages | parameters


def _put(target: str, files: dict[str, str]) -> None:
    """Make the files in a temporary directory of the same file system, then move them."""
    exists = os.path.isdir(target)
    if exists and os.listdir(target):
        raise ChrootfwError(
            f"{target} exists and is not empty", hint="name another directory with --directory"
        )
    if not exists and os.path.lexists(target):
        raise ChrootfwError(
            f"{target} exists and is not a directory",
            hint="name another directory with --directory",
        )
    temporary = os.path.join(
        target if exists else os.path.dirname(target), f".chrootfw-new-{os.getpid()}"
    )
    os.mkdir(temporary)
    moved: list[str] = []
    try:
        for file, text in files.items():
            path = os.path.join(temporary, file)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x", encoding="utf-8") as stream:
                stream.write(text)
        if not exists:
            os.rename(temporary, target)
            return
        for entry in os.listdir(temporary):  # a shell whose working directory this is keeps it
            os.rename(os.path.join(temporary, entry), os.path.join(target, entry))
            moved.append(os.path.join(target, entry))
        os.rmdir(temporary)
    except BaseException as error:
        for path in filter(os.path.lexists, (temporary, *moved)):
            try:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
            except OSError as second:
                error.add_note(f"{path} stays: {second.strerror}")
        raise
