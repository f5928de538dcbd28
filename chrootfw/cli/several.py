"""Carry out a verb on the instances of a command line: one, or several side by side."""

from __future__ import annotations

import os
import sys
from fnmatch import fnmatchcase

from chrootfw.cli import render
from chrootfw.cli.exit_status import DONE, of_error
from chrootfw.cli.natural_order import natural_key
from chrootfw.errors import ChrootfwError, InputError, NotFoundError
from chrootfw.planning.paths import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from chrootfw.cli.progress import Progress
    from chrootfw.runtime import Runtime
    from chrootfw.views import InstanceInfo

    #: Carries out the verb on one instance; returns what to print and the instance afterwards.
    Work = Callable[[str], tuple[str, InstanceInfo]]

#: How many instances are worked on side by side at most.
_WORKERS = 8

#: The states in which a verb has something to do: those that ``--all`` and a pattern choose.
_TO_DO = {
    "start": ("absent", "mounted"),
    "stop": ("mounted", "running", "held"),
    "reboot": ("mounted", "running"),
    "cleanup": ("mounted", "held"),
}


#: The signs of a pattern, each as a letter that a name may have.
_SIGNS = str.maketrans("*?[]!", "xxxxx")


def run(options: argparse.Namespace, runtime: Runtime, progress: Progress, work: Work) -> int:
    """Carry out a verb on each instance that the options name, and print each answer.

    One name is answered as such. Several are worked on side by side: each has one line, or its
    error, when it is done.

    Args:
        options: The options, with ``names`` and ``all``.
        runtime: The runtime that ``work`` calls.
        progress: What its events are shown by.
        work: Carries out the verb on one instance.

    Returns:
        The exit status: the highest of all.

    Raises:
        InputError: There is no name, or there are names beside ``--all``.
        NotFoundError: A pattern fits no instance.
        ChrootfwError: The verb failed on the only instance that was named.
    """
    from chrootfw.cancellation import from_signals

    try:
        if not options.names or is_many(options):
            return _run_all(options, runtime, progress, work, choose(options, runtime))
        with from_signals(runtime.cancellation):
            text, info = work(options.names[0])
    finally:
        progress.close()
    if options.json:
        render.show_json({"instances": [info.to_dict()], **_steps(options, progress)})
    elif not options.quiet:
        render.show(text)
    return DONE


def is_many(options: argparse.Namespace) -> bool:
    """Return whether the options may mean several instances."""
    every = getattr(options, "all", False)
    return every or len(options.names) > 1 or any(map(is_pattern, options.names))


def is_pattern(word: str) -> bool:
    """Return whether a word is a pattern of names, as a shell has it."""
    return any(sign in word for sign in "*?[")


def check_words(words: Iterable[str]) -> None:
    """Check that each word is the name of an instance or a pattern of names.

    Raises:
        InputError: One is not.
    """
    for word in words:
        check_name(word.translate(_SIGNS) if is_pattern(word) else word)


def choose(options: argparse.Namespace, runtime: Runtime) -> list[str]:
    """Return the names of the instances that the options mean, each once.

    ``--all`` and a pattern mean those for which the verb has something to do.

    Raises:
        InputError: There is no name, or there are names beside ``--all``, or one is neither the
            name of an instance nor a pattern of names; then nothing is done to the others either.
        NotFoundError: A pattern fits no instance.
    """
    if bool(options.names) == options.all:
        text = "needs NAME or --all" if options.all is False else "takes names or --all, not both"
        raise InputError(f"{options.verb} {text}", hint=f"chrootfw {options.verb} --help")
    check_words(options.names)
    patterns = ["*"] if options.all else [word for word in options.names if is_pattern(word)]
    names = {name: None for name in options.names if not is_pattern(name)}
    states = {info.name: info.state.value for info in runtime.list()} if patterns else {}
    for pattern in patterns:
        found = [name for name in states if fnmatchcase(name, pattern)]
        if not found and not options.all:
            raise NotFoundError(f"no instance fits {pattern}", hint="chrootfw list")
        fit = [name for name in found if states[name] in _TO_DO[options.verb]]
        names.update(dict.fromkeys(sorted(fit, key=natural_key)))
    return list(names)


def choose_shown(options: argparse.Namespace, directories: tuple[str, str]) -> list[str]:
    """Return the names of the instances that a verb is to show, each once.

    Args:
        options: The options, with ``names``.
        directories: The run directory and that of the definitions.

    Raises:
        InputError: A word is neither the name of an instance nor a pattern of names.
        NotFoundError: A pattern fits no instance.
    """
    check_words(options.names)
    known: list[str] = []
    if any(map(is_pattern, options.names)):
        from chrootfw.state import show

        known = sorted(show.known_names(*directories), key=natural_key)
    chosen: dict[str, None] = {}
    for word in options.names:
        fit = [name for name in known if fnmatchcase(name, word)] if is_pattern(word) else [word]
        if not fit:
            raise NotFoundError(f"no instance fits {word}", hint="chrootfw list")
        chosen.update(dict.fromkeys(fit))
    return list(chosen)


def _steps(options: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Return what ``-v`` adds to an answer in JSON."""
    return {"steps": progress.steps} if options.verbose else {}


def _run_all(
    options: argparse.Namespace,
    runtime: Runtime,
    progress: Progress,
    work: Work,
    names: list[str],
) -> int:
    """Work on several instances side by side; print each answer when it is there."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from chrootfw.cancellation import from_signals

    begun = set()

    def work_on(name: str) -> tuple[str, InstanceInfo]:
        runtime.cancellation.check()
        begun.add(name)
        return work(name)

    status = DONE
    done: dict[str, InstanceInfo] = {}
    failed: dict[str, ChrootfwError] = {}
    with (
        from_signals(runtime.cancellation),
        ThreadPoolExecutor(min(len(names), _WORKERS) or 1) as pool,
    ):
        waited_for = {pool.submit(work_on, name): name for name in names}
        for future in as_completed(waited_for):
            name = waited_for[future]
            try:
                text, done[name] = future.result()
            except (ChrootfwError, OSError) as error:
                failed[name] = _as_error(error)
                status = max(status, of_error(failed[name]))
                if not options.json and name in begun:
                    render.show(render.error(failed[name], sys.stderr, name=name), sys.stderr)
            else:
                if not options.json and not options.quiet:
                    render.show(text)
                    render.flush()
    if not_begun := [name for name in names if name in failed and name not in begun]:
        text = f"interrupted before these were begun: {', '.join(not_begun)}"
        render.show(f"chrootfw: {text}", sys.stderr)
    if options.json:
        errors = [
            {"instance": name, **render.error_dict(failed[name])}
            for name in names
            if name in failed
        ]
        instances = [done[name].to_dict() for name in names if name in done]
        render.show_json({"instances": instances, "errors": errors, **_steps(options, progress)})
    elif not names and not options.quiet:
        render.show(f"there is nothing to {options.verb.replace('cleanup', 'clean up')}")
    return status


def _as_error(error: ChrootfwError | OSError) -> ChrootfwError:
    if isinstance(error, ChrootfwError):
        return error
    where = f": {os.fsdecode(error.filename)}" if error.filename else ""
    return ChrootfwError(f"{error.strerror or error}{where}")
