"""The command line: reads arguments, calls the library, shows the answer. Nothing is decided here.

What a verb does not need is not imported: ``list``, ``info``, ``ps`` and ``exec`` load no plugin.
"""

from __future__ import annotations

import gc
import os
import sys

import chrootfw
from chrootfw.errors import (
    ChrootfwError,
    DefinitionError,
    HeldError,
    InputError,
    Interrupted,
    NotFoundError,
)
from chrootfw.planning.paths import check_absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from chrootfw.model import Event, Instance
    from chrootfw.runtime import Runtime
    from chrootfw.views import InstanceInfo

DONE, FAILED, USAGE, NOT_FOUND, HELD = 0, 1, 2, 3, 4
#: So many objects more than there were are looked through for cycles (gc.set_threshold); no command comes to make them.
_CYCLES = 100_000
#: What exec and shell answer when chrootfw itself fails, and as env(1) and chroot(1) do for the command.
EXEC_FAILED, EXEC_NOT_EXECUTABLE, EXEC_MISSING = 125, 126, 127


def run() -> int:
    """The command ``chrootfw``: ``main``, and the end of the process where nothing is left to do for Python.

    To take the interpreter down takes a tenth of a ``start``, and so does the search for garbage in cycles while modules are
    loaded. A plugin of others may have asked to be called at the end (atexit).
    """
    gc.set_threshold(_CYCLES)
    status = main()
    if (loaded := sys.modules.get("chrootfw.installed")) and loaded.foreign:
        return status
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, AttributeError):  # nobody reads it, or there is no stream: none could be opened
        status = status or FAILED
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    inside = next((word for word in arguments if not word.startswith("-")), "") in ("exec", "shell")
    try:
        _have_stdio()
        if arguments in (["--version"], ["-V"]):
            print(f"chrootfw {chrootfw.__version__}")
            return DONE
        options = _plain(arguments) or _parse(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        if run is not _new_plugin:  # which writes where its caller stands
            os.chdir("/")  # a caller who stands inside an instance must not make its mounts busy twice
        status = run(options)
        sys.stdout.flush()
        return status
    except ChrootfwError as error:
        return _fail(error, as_json=as_json, inside=inside)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone; nobody is left to tell
        return FAILED
    except KeyboardInterrupt:
        return 130
    except ImportError as error:  # a verb's own modules: a disk that fails, or an installation that is being replaced
        print(f"chrootfw: a part of chrootfw could not be loaded: {error}; install it anew", file=sys.stderr)
        return EXEC_FAILED if inside else FAILED  # in plain words also for --json: what is missing may be json
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        notes = getattr(error, "__notes__", ())  # what an undo could not do, for one
        return _fail(ChrootfwError(f"{error.strerror or error}{where}", notes), as_json=as_json, inside=inside)


class _Plain:
    """What argparse answers where no option is given but ``--json``."""

    no_plugins = verbose = force = no_script = keep_mounted = kill_holders = no_init = False
    timeout = disk = init_script = user = cwd = None
    lock_timeout = 10.0
    without = set = env = ()

    def __init__(self, verb: str, name: str | None, command: list[str], *, json: bool) -> None:
        self.verb = verb
        self.run, _ = _NAMED[verb]
        self.name = name
        self.command = command
        self.json = json


def _plain(arguments: list[str]) -> Any:
    """The options of a verb and a name, which most commands are; ``None`` for others.

    argparse takes longer to import than a list to make.
    """
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    words = [word for word in arguments[:dashes] if word != "--json"]
    verb, *names = words or [""]
    if verb not in _NAMED or any(word.startswith("-") for word in words) or len(names) != _NAMED[verb][1]:
        return None
    if (verb == "exec") != (dashes < len(arguments)):
        return None
    return _Plain(verb, names[0] if names else None, arguments[dashes + 1 :], json=len(words) < dashes)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """What stands behind the ``--`` of exec is a command's, and not looked at."""
    import argparse

    options = argparse.Namespace(no_plugins=False, without=[], lock_timeout=10.0, verbose=False, json=False)
    dashes = arguments.index("--") if "--" in arguments else 0
    if "exec" in arguments[:dashes]:
        _parser().parse_args(arguments[:dashes], options)
        if options.verb == "exec":
            if options.command:
                raise InputError(f"{options.command[0]!r} stands before --", hint="chrootfw exec NAME … -- COMMAND …")
            options.command = arguments[dashes + 1 :]
            return options
    return _parser().parse_args(arguments, options)


def _have_stdio() -> None:
    """File descriptors 0 to 2 are open: what is opened later must not become one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # paths may hold any byte


def _fail(error: ChrootfwError, *, as_json: bool, inside: bool) -> int:
    from chrootfw import display

    if as_json:
        shown = {"kind": error.kind, "brief": error.brief, "details": list(error.details), "hint": error.hint}
        _print_json({"error": shown})
    else:
        print(display.error(error, sys.stderr), file=sys.stderr)
    if inside:
        return EXEC_FAILED
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, HeldError):
        return HELD
    if isinstance(error, NotFoundError):
        return NOT_FOUND
    if isinstance(error, InputError) and not isinstance(error, DefinitionError):
        return USAGE
    return FAILED


def _print_json(value: dict[str, Any]) -> None:
    import json

    print(json.dumps({"version": 1, **value}, indent=2))


# -- the verbs --------------------------------------------------------------------------------------


def _start(options: argparse.Namespace) -> int:
    from chrootfw.interrupts import from_signals

    runtime, _ = _runtime(options)
    with from_signals(runtime.interrupts):
        instance, definition = _instance(options, runtime)
        info = runtime.start(instance, definition=definition)
    _say(f"{info.name} is {info.state}" + _count(info), info, options)
    return DONE


def _stop(options: argparse.Namespace) -> int:
    from chrootfw.interrupts import from_signals

    runtime, progress = _runtime(options)
    with from_signals(runtime.interrupts), _remains(runtime, options):
        info = runtime.stop(
            options.name,
            force=options.force,
            timeout=options.timeout,
            run_script=False if options.no_script else None,
            keep_mounted=options.keep_mounted,
            kill_holders=options.kill_holders,
        )
    words = {"absent": "stopped" if progress.steps else "already stopped", "mounted": "stopped, and still mounted"}
    _say(f"{options.name} is {words.get(info.state.value, info.state.value)}", info, options)
    return DONE


def _reboot(options: argparse.Namespace) -> int:
    from chrootfw.interrupts import from_signals

    runtime, _ = _runtime(options)
    with from_signals(runtime.interrupts), _remains(runtime, options):
        info = runtime.reboot(options.name)
    _say(f"{info.name} is {info.state} again" + _count(info), info, options)
    return DONE


def _cleanup(options: argparse.Namespace) -> int:
    from chrootfw.interrupts import from_signals

    runtime, progress = _runtime(options)
    with from_signals(runtime.interrupts), _remains(runtime, options):
        info = runtime.cleanup(options.name)
    _say(f"{options.name} is {'cleaned up' if progress.steps else 'already clean'}", info, options)
    return DONE


def _list(options: argparse.Namespace) -> int:
    from chrootfw import display, inventory

    found = inventory.show_all(*_directories())
    if options.json:
        _print_json({"instances": [info.to_dict() for info in found]})
    else:
        print(display.instances(found, sys.stdout))
    return DONE


def _info(options: argparse.Namespace) -> int:
    from chrootfw import display, inventory

    info = inventory.show_one(*_directories(), options.name)
    if options.json:
        _print_json({"instances": [info.to_dict()], **info.to_dict()})
    else:
        print(display.instance(info, sys.stdout))
    return DONE


def _ps(options: argparse.Namespace) -> int:
    from chrootfw import display, inventory

    found = inventory.all_processes(*_directories(), options.name)
    if options.json:
        _print_json({"processes": [process.to_dict() for process in found]})
    else:
        print(display.process_table(found, sys.stdout))
    return DONE


def _node(options: argparse.Namespace) -> int:
    from chrootfw import display, node

    info = node.info(*_directories())
    if options.json:
        _print_json({"node": info.to_dict()})
    else:
        print(display.node(info))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from chrootfw import display

    runtime, _ = _runtime(options)
    found = runtime.verify()
    if options.json:
        _print_json({"checks": [check.to_dict() for check in found]})
    else:
        print(display.checks(found, sys.stdout))
    return FAILED if any(check.status == "error" for check in found) else DONE


def _plugins(options: argparse.Namespace) -> int:
    import attrs

    from chrootfw import display

    runtime, _ = _runtime(options)
    rows = runtime.who_answers(options.name) if options.name is not None else []
    records = runtime.plugins()
    left_out = runtime.plugins_left_out()
    failures = [error.brief for error in runtime.plugin_failures()]
    if options.json:
        shown = {
            "plugins": [attrs.asdict(record) for record in records],
            "left_out": [record.name for record in left_out],
            "failures": failures,
        }
        answers = [{"stage": stage, "hook": hook, "plugin": plugin} for stage, hook, plugin in rows]
        _print_json({**shown, **({"answers": answers} if options.name is not None else {})})
        return DONE
    if options.name is not None:
        print(display.table(["STAGE", "HOOK", "ANSWERED BY"], rows, sys.stdout, {}))
        return DONE
    lines = [
        [record.name, record.version, record.band, ", ".join(h.removeprefix("chrootfw_") for h in record.hooks)]
        for record in records
    ]
    lines += [[record.name, record.version, record.band, "left out"] for record in left_out]
    print(display.table(["PLUGIN", "VERSION", "BAND", "HOOKS"], lines, sys.stdout, {}))
    for brief in failures:
        print(f"not loaded: {brief}", file=sys.stderr)
    return DONE


def _parameters(options: argparse.Namespace) -> int:
    from chrootfw import config, display

    runtime, _ = _runtime(options)
    found = runtime.parameters()
    bands = {record.name: record.band for record in runtime.plugins()}

    def origin(plugin: str) -> str:
        return "chrootfw" if bands.get(plugin, "default") == "default" else plugin

    if options.json:
        rows = [
            {
                "name": parameter.name,
                "type": config.type_text(parameter),
                "default": list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default,
                "help": parameter.help,
                "plugin": plugin,
            }
            for plugin, parameter in found
        ]
        _print_json({"parameters": rows})
        return DONE
    lines = [
        [parameter.name, config.type_text(parameter), config.default_text(parameter), origin(plugin), parameter.help]
        for plugin, parameter in found
    ]
    print(display.table(["PARAMETER", "TYPE", "DEFAULT", "FROM", "MEANING"], lines, sys.stdout, {}))
    return DONE


def _plan(options: argparse.Namespace) -> int:
    runtime, _ = _runtime(options)
    instance: Instance | str = options.name
    if options.what == "start":
        instance, _ = _instance(options, runtime)
    plan = runtime.plan(options.what, instance)
    if options.json:
        _print_json(plan.to_dict())
    else:
        print(plan.describe())
    return DONE


def _exec(options: argparse.Namespace) -> int:
    from chrootfw import entering

    command: list[str] = options.command
    if not command:
        raise InputError("exec needs a command", hint="chrootfw exec NAME -- COMMAND …")
    env = {}
    for setting in options.env:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--env {setting!r} is not NAME=VALUE")
        env[key] = value
    _need_root(f"run a command in {options.name}")
    try:
        return entering.execute(*_directories(), options.name, command, user=options.user, env=env, cwd=options.cwd)
    except OSError as error:
        import errno

        brief = f"cannot run {command[0]} in {options.name}: {error.strerror}"
        if not (error.strerror or "").startswith("execve"):
            raise ChrootfwError(f"{brief} ({error.filename})") from error
        print(f"chrootfw: {brief}", file=sys.stderr)
        return EXEC_MISSING if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXEC_NOT_EXECUTABLE


def _shell(options: argparse.Namespace) -> int:
    from chrootfw import entering

    _need_root(f"open a shell in {options.name}")
    try:
        return entering.shell(*_directories(), options.name)
    except OSError as error:
        print(f"chrootfw: cannot open a shell in {options.name}: {error.strerror}", file=sys.stderr)
        return EXEC_FAILED


def _powercycle(options: argparse.Namespace) -> int:
    if not options.yes_really:
        raise InputError(
            "powercycle resets this machine at once, without stopping anything",
            hint="say so: chrootfw powercycle --yes-really",
        )
    from chrootfw import node

    _need_root("power-cycle this machine")
    print(node.powercycle())
    return DONE


def _new_plugin(options: argparse.Namespace) -> int:
    from chrootfw import scaffold

    directory, files = scaffold.write(options.plugin, options.directory)
    if options.json:
        _print_json({"directory": directory, "files": files})
        return DONE
    import shlex

    print(f"wrote {directory}:", *files, sep="\n  ")
    print("next:")
    for command in (f"cd {shlex.quote(directory)}", "python3 -m pip install -e '.[test]'", "python3 -m pytest"):
        print(f"  {command}")
    return DONE


def _ganeti(options: argparse.Namespace) -> int:
    from chrootfw_ganeti import verbs

    return verbs.run(options)


def _demo(_options: argparse.Namespace) -> int:
    from chrootfw import demo

    return demo.main()


#: The verbs that may come with nothing but a name, and how many names.
_NAMED: dict[str, tuple[Callable[[argparse.Namespace], int], int]] = {
    "start": (_start, 1),
    "stop": (_stop, 1),
    "reboot": (_reboot, 1),
    "cleanup": (_cleanup, 1),
    "list": (_list, 0),
    "info": (_info, 1),
    "ps": (_ps, 1),
    "exec": (_exec, 1),
}


# -- what the verbs share ---------------------------------------------------------------------------


def _directories() -> tuple[str, str]:
    run_dir = os.environ.get("CHROOTFW_RUN_DIR") or "/run/chrootfw"
    config_dir = os.environ.get("CHROOTFW_CONFIG_DIR") or "/etc/chrootfw"
    check_absolute(run_dir, what="the run directory")
    check_absolute(config_dir, what="the configuration directory")
    return run_dir, config_dir


def _runtime(options: argparse.Namespace) -> tuple[Runtime, _Progress]:
    from chrootfw import log
    from chrootfw.runtime import Runtime

    log.shown_elsewhere()
    progress = _Progress(verbose=options.verbose)
    runtime = Runtime(
        discover=not options.no_plugins,
        instance_plugins=not options.no_plugins,
        without=options.without,
        lock_timeout=options.lock_timeout,
        on_event=progress,
    )
    return runtime, progress


def _instance(options: argparse.Namespace, runtime: Runtime) -> tuple[Instance | str, str | None]:
    """The instance to start: its definition, and the flags beside it, which apply to this start only; and the
    definition's text."""
    from chrootfw import config

    changes: dict[str, Any] = {}
    if options.disk is not None:
        changes["disk"] = options.disk
    if options.no_init:
        changes["init_script"] = None
    elif options.init_script is not None:
        changes["init_script"] = options.init_script
    settings = dict(config.parse_setting(text) for text in options.set)
    if not changes and not settings:
        return options.name, None
    return runtime.instance(options.name, changes, settings)


def _need_root(verb: str) -> None:
    if os.geteuid() != 0:
        from chrootfw.errors import PrivilegeError

        raise PrivilegeError(f"only root can {verb}", hint="run it with sudo, or as root")


def _say(text: str, info: InstanceInfo, options: argparse.Namespace) -> None:
    if options.json:
        _print_json({"instances": [info.to_dict()]})
    else:
        print(text)


def _count(info: InstanceInfo) -> str:
    """How many processes it has, for the end of a sentence."""
    return f": {info.processes} process{'es' if info.processes != 1 else ''}" if info.processes else ""


class _Progress:
    """Shows events on stderr: warnings and blame always, steps with ``-v``. ``steps`` counts what was done."""

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.steps = 0

    def __call__(self, event: Event) -> None:
        if event.what in ("warning", "blame"):
            from chrootfw import display

            label = display.paint("warning:" if event.what == "warning" else "plugin:", "yellow", sys.stderr)
            print(f"chrootfw: {label} {event.error or event.does}", file=sys.stderr)
            return
        if event.what == "begin":
            return
        self.steps += 1
        if self.verbose:
            from chrootfw import display

            mark = (
                display.paint("✓", "green", sys.stderr)
                if event.what == "end"
                else display.paint("✗", "red", sys.stderr)
            )
            by = f"  [{event.plugin}]" if event.plugin else ""
            failed = f": {event.error}" if event.error else ""
            took = f"{event.seconds * 1000:7.1f} ms"
            print(f"{mark} {took}  {event.stage:<10}  {event.does}{by}{failed}", file=sys.stderr)


class _remains:
    """An interrupted stop, reboot or cleanup says what remains."""

    def __init__(self, runtime: Runtime, options: argparse.Namespace) -> None:
        self.runtime = runtime
        self.options = options

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, Interrupted):
            return
        try:
            info = self.runtime.info(self.options.name)
        except ChrootfwError:
            return  # gone after all
        error.details = (
            *error.details,
            f"{info.name} is {info.state}{_count(info)}; {len(info.mounts or ())} mounts remain",
        )
        error.hint = f"chrootfw {self.options.verb} {info.name} goes on where this one ended"


def _parser() -> argparse.ArgumentParser:
    import argparse

    def number(text: str) -> float:
        value = float(text)
        if not 0 <= value <= 86_400:
            raise argparse.ArgumentTypeError(f"{text} is not within 0 and 86400 seconds")
        return value

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(message, hint=f"{self.prog} --help")

    left_out: list[str] = []

    class LeftOut(argparse.Action):
        """``append`` begins anew after the verb, and would forget what stands before it."""

        def __call__(self, _parser: object, options: argparse.Namespace, value: Any, _option: object = None) -> None:
            left_out.append(value)
            setattr(options, self.dest, left_out)

    # A parser's own defaults would become those of the verbs' parsers, which undo what stands before the verb.
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("everywhere")
    group.add_argument("--no-plugins", action="store_true", help="load the default plugins only")
    group.add_argument("--without", action=LeftOut, metavar="PLUGIN", help="leave out a plugin; may be repeated")
    group.add_argument("--lock-timeout", type=number, metavar="S", help="seconds to wait for another command (10)")
    group.add_argument("-v", "--verbose", action="store_true", help="show every step and how long it took")
    group.add_argument("--json", action="store_true", help="answer in JSON, errors too")

    parser = Parser(
        prog="chrootfw",
        description="Manages long-running chroots; every stage of a chroot's life is a plugin hook.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 no such instance, 4 held. exec and shell: the command's own.",
        parents=[common],
    )
    parser.add_argument("-V", "--version", action="version", version=f"chrootfw {chrootfw.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], help: str, *, named: bool = True
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", parents=[common])
        added.set_defaults(run=run)
        if named:
            added.add_argument("name", metavar="NAME", help="the instance")
        return added

    def definition_flags(added: argparse.ArgumentParser) -> None:
        added.add_argument("--disk", metavar="PATH", help="block device, image file or directory, for this start only")
        script = added.add_mutually_exclusive_group()
        script.add_argument("--init-script", metavar="PATH", help="path inside the root")
        script.add_argument("--no-init", action="store_true", help="mount only")
        added.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="PARAM=VALUE",
            help="a parameter as a TOML value; may be repeated",
        )

    verb("demo", _demo, "a whole life on this machine: image, start, a page served from inside, stop", named=False)
    definition_flags(verb("start", _start, "mount, check, and run the init script with start"))
    added = verb("stop", _stop, "run the init script with stop, end the processes, unmount, prove that nothing is left")
    added.add_argument("--timeout", type=number, metavar="S", help="grace period in seconds between TERM and KILL")
    added.add_argument("--force", action="store_true", help="no init script; KILL at once")
    added.add_argument("--no-script", action="store_true", help="do not run the init script")
    added.add_argument("--keep-mounted", action="store_true", help="end the processes only")
    added.add_argument("--kill-holders", action="store_true", help="signal outside processes that use the mounts, too")
    verb("reboot", _reboot, "stop the processes and start again; the disk stays mounted")
    verb("cleanup", _cleanup, "unmount and release what is mounted or held")
    verb("list", _list, "every instance, present or defined", named=False)
    verb("info", _info, "one instance in full")
    verb("ps", _ps, "the processes of an instance, and who holds its mounts")
    verb("node", _node, "the machine: memory, CPUs, disk space", named=False)
    verb("verify", _verify, "whether this machine is fit for chrootfw", named=False)
    added = verb("plugins", _plugins, "the plugins in the order of asking, or who answers for an instance", named=False)
    added.add_argument("name", metavar="NAME", nargs="?", help="the instance")
    verb("parameters", _parameters, "the parameters that an instance may have", named=False)
    added = verb("exec", _exec, "run a command inside; its exit status is chrootfw's")
    added.add_argument("--user", metavar="USER", help="a name or number of the root's own /etc/passwd, or USER:GROUP")
    added.add_argument("--env", action="append", default=[], metavar="K=V", help="added to the clean environment")
    added.add_argument("--cwd", metavar="DIR", help="the working directory inside")
    added.add_argument("command", nargs="*", metavar="-- CMD", help="the command and its arguments")
    verb("shell", _shell, "open a shell on a terminal of the instance's own")
    added = verb(
        "plan", _plan, "the exact steps of a start or stop, and which plugin answered; touches nothing", named=False
    )
    added.add_argument("what", choices=("start", "stop"))
    added.add_argument("name", metavar="NAME", help="the instance")
    definition_flags(added)
    added = verb(
        "new-plugin", _new_plugin, "write the project of a plugin: a module, its tests, its packaging", named=False
    )
    added.add_argument("plugin", metavar="NAME", help="what the plugin does, such as quit-first")
    added.add_argument("--directory", metavar="DIR", help="where; empty, or not there yet (./chrootfw-NAME)")
    added = verb("ganeti", _ganeti, "be Ganeti's chroot hypervisor on this node, or no longer", named=False)
    added.add_argument("what", choices=("install", "remove", "status"))
    added.add_argument("--root", metavar="DIR", default="/", help="a node's tree of files, such as an image")
    added.add_argument("--force", action="store_true", help="although instances are on this node")
    added = verb("powercycle", _powercycle, "reset this machine at once", named=False)
    added.add_argument("--yes-really", action="store_true", help="do it")
    return parser
