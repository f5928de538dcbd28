"""Run the command line: read arguments, call the library, show the answer.

Nothing is decided here. What a verb does not need is not imported: ``list``, ``info``, ``ps`` and
``exec`` load no plugin.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from chrootfw.cli.ending import end
from chrootfw.cli.exit_status import EXEC_FAILED, FAILED, of_error
from chrootfw.cli.parser import is_option, parse, split_arguments
from chrootfw.cli.verb_table import find_verb
from chrootfw.cli.verbs import is_command
from chrootfw.errors import ChrootfwError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: So many objects more than there were are looked through for cycles (gc.set_threshold); no command
#: comes to make them.
_CYCLES = 100_000


def run() -> int:
    """Run the command ``chrootfw``.

    The search for garbage in cycles while modules are loaded would take a tenth of a ``start``.

    Returns:
        The exit status.
    """
    try:
        is_command.append(True)
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # ignored, as a caller may leave it, no child has a status
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # since __main__ was loaded
            signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.set_threshold(_CYCLES)
        status = main()
        write_out()
        if (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):  # nothing is behind this to answer it
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # main's own handler is behind it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        status = 130
    gc.freeze()  # or Python would look through all of it when it ends
    return end(status)


def write_out() -> None:
    """Empty the streams; what they do not take now is not tried again when Python ends."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):  # of standard output, main has reported it
            _discard(number)


def _discard(number: int) -> None:
    """Have what is written from now on lost."""
    try:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(fd, number)
        os.close(fd)
    except OSError:
        pass  # the process ends anyway, and its status is known


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words behind ``chrootfw``; ``None`` for those of this process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments = arguments[1:] if arguments[:1] == ["--"] else arguments
    name, own, _ = split_arguments(arguments)
    verb = find_verb(name)
    as_json = any(is_option(word, "--json") for word in own)
    inside = verb is not None and verb.is_inside
    status = None
    try:
        status = _run_verb(arguments, as_json=as_json, inside=inside)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _report_crash(error, status, inside=inside)


def _run_verb(arguments: list[str], *, as_json: bool, inside: bool) -> int:
    """Run the verb. What it fails with is printed."""
    try:
        _have_stdio()
        options = parse(arguments)
        _check_installed()
        verb = find_verb(options.verb)
        assert verb is not None
        if not verb.keeps_directory:
            os.chdir("/")
        if not as_json:
            return verb.run(options)
        from chrootfw.cli import render

        with render.reserve_stdout():
            return verb.run(options)
    except ChrootfwError as error:
        return _fail(error, as_json=as_json, inside=inside)
    except SystemExit as error:
        if isinstance(error.code, int):  # argparse has printed its help
            return error.code
        text = f"the verb was ended by SystemExit: {error.code}"
        return _fail(ChrootfwError(text), as_json=as_json, inside=inside)
    # a verb's own modules: a disk that fails, or an installation that is being replaced
    except ImportError as error:
        text = f"chrootfw: cannot import a part of chrootfw: {error}; reinstall chrootfw"
        try:
            from chrootfw.cli import render
        except ImportError:
            sys.stderr.write(f"{ascii(text)[1:-1]}\n")  # that is the missing one
        else:
            render.show(text, sys.stderr)
        return (
            EXEC_FAILED if inside else FAILED
        )  # in plain words also for --json: what is missing may be json
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        notes = getattr(error, "__notes__", ())  # what an undo could not do, for one
        lines = [line for note in notes for line in note.split("\n")]
        return _fail(
            ChrootfwError(f"{error.strerror or error}{where}", lines),
            as_json=as_json,
            inside=inside,
        )


def _report_crash(error: Exception, status: int | None, *, inside: bool) -> int:
    """Report an answer that cannot be printed, or an error of chrootfw's own.

    Return the exit status: ``status`` if that already stands for a failure.
    """
    from chrootfw.cli import render

    if status is not None and isinstance(error, OSError | ValueError):  # of the flush
        error = render.Unwritable(error)
    if isinstance(error, render.Unwritable):
        _discard(1)
        why = error.error.strerror if isinstance(error.error, OSError) else "it is closed"
        if not isinstance(error.error, BrokenPipeError):  # the reader has gone, and knows it
            render.show(f"chrootfw: cannot write to standard output: {why}", sys.stderr)
        return status or (EXEC_FAILED if inside else FAILED)
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-6:]
    found = ChrootfwError(
        f"internal error: {type(error).__name__}: {error}",
        [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames],
        "please report this with the lines above",
    )
    return _fail(found, as_json=False, inside=inside)


def _check_installed() -> None:
    """Refuse to run from a source tree that is not installed: its plugins are elsewhere.

    Raises ``ChrootfwError``.
    """
    tree = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if not os.path.isdir(f"{tree}/plugins/chrootfw_defaults"):
        return
    from importlib.machinery import PathFinder

    if PathFinder.find_spec("chrootfw_defaults") is None:
        import importlib.util

        from chrootfw.hooks import entry_points

        if (
            importlib.util.find_spec("chrootfw_defaults") is None
        ):  # asks the finders of others too, and is slow to import
            raise entry_points.not_installed(tree)


def _have_stdio() -> None:
    """File descriptors 0 to 2 are open: what is opened later must not become one of them.

    A standard output that was closed stays one that nothing can be written to.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        if fd == 1:
            read_only = os.open(os.devnull, os.O_RDONLY)
            os.dup2(read_only, fd)
            os.close(read_only)
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # paths may hold any byte


def _fail(error: ChrootfwError, *, as_json: bool, inside: bool) -> int:
    from chrootfw.cli import render

    if as_json:
        try:
            render.show_json({"error": render.error_dict(error)})
            render.flush()
        except render.Unwritable:
            _discard(1)
            as_json = False  # for people then, on the stream that is left
    if not as_json:
        render.show(render.error(error, sys.stderr), sys.stderr)
    return of_error(error, inside=inside)
