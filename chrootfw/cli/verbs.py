"""The verbs of the command line: one function each calls the library and prints the answer.

``verb_table.VERBS`` names the function of each verb. Each takes the parsed options.
"""

from __future__ import annotations

import os
import stat
import sys

from chrootfw.cli.exit_status import DONE, EXEC_MISSING, EXEC_NOT_EXECUTABLE, FAILED
from chrootfw.cli.progress import Progress, ReportOfRemains, count_processes
from chrootfw.errors import (
    ChrootfwError,
    InputError,
    Lines,
    TransitionError,
    nearest,
    word_for_command,
)
from chrootfw.planning.paths import check_absolute, check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from chrootfw.hooks.registry import PluginRecord
    from chrootfw.model import Instance, Parameter
    from chrootfw.runtime import Runtime
    from chrootfw.state.holders import Holders
    from chrootfw.views import InstanceInfo

#: The parameters that come with chrootfw, by subject, as the reference page has them.
_SUBJECTS: dict[str, tuple[str, ...]] = {
    "Disk": ("disk", "fstype", "read_only", "mount_options", "min_free", "disk_timeout"),
    "Init script": ("init_script", "start_timeout", "stop_script_timeout", "require_process"),
    "Limits and priorities": ("limits", "nice", "oom_score_adj"),
    "Environment": ("environment", "environment_file"),
    "Output": ("log", "log_size"),
    "Stop": ("stop_wait", "grace", "holders"),
    "Inside": ("binds", "resolv_conf", "hosts", "api_filesystems", "devices", "namespaces"),
    "Hardening": ("hardened", "hardened_namespaces", "hardened_capabilities", "hardened_seccomp"),
    "Plugins": ("plugins",),
}

#: Whether this process is the command, not a program that calls ``main``.
is_command: list[bool] = []


def start(options: argparse.Namespace) -> int:
    """Start instances; return the exit status."""
    from chrootfw.cli import several

    if options.disk is not None and several.is_many(options):
        raise InputError("--disk is for one instance", hint="chrootfw start NAME --disk PATH")
    runtime, progress = _runtime(options, names=several.is_many(options))

    def work(name: str) -> tuple[str, InstanceInfo]:
        instance, definition = _instance(options, name, runtime)
        try:
            info = runtime.start(instance, definition=definition)
        except TransitionError:
            info = runtime.info(name)
            if not options.if_needed or info.state != "running":
                raise
            return f"{name} is already running" + count_processes(info), info
        return f"{name} is {info.state}" + count_processes(info), info

    return several.run(options, runtime, progress, work)


def stop(options: argparse.Namespace) -> int:
    """Stop instances; return the exit status."""
    from chrootfw.cli import several

    runtime, progress = _runtime(options, names=several.is_many(options))

    def work(name: str) -> tuple[str, InstanceInfo]:
        with ReportOfRemains(runtime, "stop", name):
            info = runtime.stop(
                name,
                force=options.force,
                timeout=options.timeout,
                run_script=False if options.no_script else None,
                keep_mounted=options.keep_mounted,
                kill_holders=options.kill_holders,
            )
        words = {
            "absent": "stopped" if name in progress.changed else "already stopped",
            "mounted": "stopped, and still mounted",
        }
        return f"{name} is {words.get(info.state.value, info.state.value)}", info

    return several.run(options, runtime, progress, work)


def reboot(options: argparse.Namespace) -> int:
    """Reboot instances; return the exit status."""
    from chrootfw.cli import several

    runtime, progress = _runtime(options, names=several.is_many(options))

    def work(name: str) -> tuple[str, InstanceInfo]:
        with ReportOfRemains(runtime, "reboot", name):
            info = runtime.reboot(name)
        return f"{name} is {info.state} again" + count_processes(info), info

    return several.run(options, runtime, progress, work)


def cleanup(options: argparse.Namespace) -> int:
    """Clean up instances; return the exit status."""
    from chrootfw.cli import several

    runtime, progress = _runtime(options, names=several.is_many(options))

    def work(name: str) -> tuple[str, InstanceInfo]:
        with ReportOfRemains(runtime, "cleanup", name):
            info = runtime.cleanup(name, forget=options.forget)
        return f"{name} is {'cleaned up' if name in progress.changed else 'already clean'}", info

    return several.run(options, runtime, progress, work)


def list_instances(options: argparse.Namespace) -> int:
    """List the instances; return the exit status."""
    from chrootfw.cli import listing, render
    from chrootfw.state import show

    columns = listing.parse_columns(options.columns)
    run_dir, config_dir = _directories(options)
    found = listing.choose(show.show_all(run_dir, config_dir), options)
    if unread := show.unread_definitions(config_dir):
        render.show(render.event("warning", unread, sys.stderr), sys.stderr)
        render.keep_warning(unread)
    if options.json:
        render.show_json({"instances": [info.to_dict() for info in found]})
    elif options.quiet:
        if found:
            render.show(Lines(info.name for info in found))
    elif found or options.columns:
        render.show(render.instances(found, sys.stdout, columns))
        for info in found:
            for note in info.notes if info.state == "absent" else ():
                text = render.name_instance(note, info.name)
                render.show(render.event("warning", text, sys.stderr), sys.stderr)
    elif options.patterns or options.state:
        words = [*options.patterns, *(f"--state {state}" for state in options.state or ())]
        render.show(f"no instance fits {' '.join(words)}")
    elif unread:
        render.show("no instance is present")
    else:
        render.show("no instances: none is present, none is defined")
    return DONE


def show_top(options: argparse.Namespace) -> int:
    """Show a live list of the instances; return the exit status."""
    if options.json:
        raise InputError("top is a live display and has no JSON", hint="chrootfw list --json")
    from chrootfw.cli import top

    return top.run(
        *_directories(options),
        patterns=options.patterns,
        sort=options.sort,
        interval=options.interval,
    )


def show_info(options: argparse.Namespace) -> int:
    """Show instances in full; return the exit status."""
    from chrootfw.cli import render, several
    from chrootfw.state import show

    found = []
    for name in several.choose_shown(options, _directories(options)):
        _revive_logger(options, name)
        found.append(show.show_one(*_directories(options), name))
    if options.json:
        answer = {"instances": [info.to_dict() for info in found]}
        render.show_json(answer if several.is_many(options) else {**answer, **found[0].to_dict()})
        return DONE
    for number, info in enumerate(found):
        if number:
            render.show("")
        render.show(render.instance(info, sys.stdout))
    return DONE


def show_processes(options: argparse.Namespace) -> int:
    """Show the processes of instances; return the exit status."""
    from chrootfw.cli import render, several
    from chrootfw.state import show

    found = {}
    for name in several.choose_shown(options, _directories(options)):
        _revive_logger(options, name)
        found[name] = show.all_processes(*_directories(options), name)
    many = several.is_many(options)
    if not options.json:
        rows = [(name, process) for name, each in found.items() for process in each]
        render.show(render.process_table(rows, sys.stdout, has_names=many))
    for name, each in found.items():
        _warn_of_unexamined(each, name)
    if options.json:
        shown = [
            {**({"instance": name} if many else {}), **process.to_dict()}
            for name, each in found.items()
            for process in each
        ]
        unexamined = sorted({pid for each in found.values() for pid in each.unexamined})
        more = {"not_examined": unexamined} if unexamined else {}
        render.show_json({"processes": shown, **more})
    return DONE


def show_tree(options: argparse.Namespace) -> int:
    """Show the mounts, processes and holders of an instance as a tree; return the exit status."""
    from chrootfw.cli import render, tree
    from chrootfw.state import show

    _revive_logger(options, options.name)
    info, mounts, processes = show.read_tree(*_directories(options), options.name)
    if options.json:
        _warn_of_unexamined(processes, options.name)
        render.show_json(
            {
                "name": info.name,
                "state": info.state,
                "disk": info.disk,
                "mounts": mounts,
                "processes": [process.to_dict() for process in processes],
                **({"not_examined": list(processes.unexamined)} if processes.unexamined else {}),
            }
        )
        return DONE
    render.show(tree.draw(info, mounts, processes, sys.stdout))
    _warn_of_unexamined(processes, options.name)
    return DONE


def _warn_of_unexamined(processes: Holders, name: str) -> None:
    for line in processes.describe_unexamined():
        _warn(line, name)


def show_logs(options: argparse.Namespace) -> int:
    """Show what an instance printed; return the exit status."""
    from chrootfw.cli import render

    runtime, _ = _runtime(options)
    found = runtime.logs(
        options.name, script=options.script, lines=options.lines, follow=options.follow
    )
    if options.json:
        if options.follow:
            raise InputError("an answer in JSON has an end", hint="leave out --follow, or --json")
        render.show_json({"lines": [line.decode("utf-8", "replace") for line in found]})
        return DONE
    for line in found:
        render.show_output_line(line)
    return DONE


def show_metrics(options: argparse.Namespace) -> int:
    """Show the instances in Prometheus' text format; return the exit status."""
    if options.json:
        raise InputError("metrics have their own format", hint="chrootfw list --json")
    from chrootfw.cli import metrics, render
    from chrootfw.state import show

    render.show(Lines(metrics.lines(show.show_all(*_directories(options)))))
    return DONE


def show_node(options: argparse.Namespace) -> int:
    """Show the machine; return the exit status."""
    from chrootfw.cli import render
    from chrootfw.state import node

    info = node.info(*_directories(options))
    if options.json:
        render.show_json({"node": info.to_dict()})
    else:
        render.show(render.node(info))
    return DONE


def verify(options: argparse.Namespace) -> int:
    """Check this machine; return the exit status."""
    from chrootfw.cli import render

    runtime, _ = _runtime(options)
    found = runtime.verify()
    if options.json:
        checks = [{**each.to_dict(), "hint": word_for_command(each.hint)} for each in found]
        render.show_json({"checks": checks})
    else:
        render.show(render.checks(found, sys.stdout))
    return FAILED if any(check.status == "error" for check in found) else DONE


def show_plugins(options: argparse.Namespace) -> int:
    """Show the plugins; return the exit status."""
    from chrootfw.cli import render

    runtime, _ = _runtime(options)
    rows = runtime.who_answers(options.name) if options.name is not None else []
    records = runtime.plugins()
    left_out = runtime.plugins_left_out()
    failures = [error.brief for error in runtime.plugin_failures()]
    if options.json:
        shown = {
            "plugins": [_plugin_to_dict(record) for record in records],
            "left_out": [record.name for record in left_out],
            "failures": failures,
        }
        answers = [{"stage": stage, "hook": hook, "plugin": plugin} for stage, hook, plugin in rows]
        render.show_json({**shown, **({"answers": answers} if options.name is not None else {})})
        return DONE
    if options.name is not None:
        header = ["STAGE", "HOOK", "ANSWERED BY"]
        render.show(render.table(header, rows, sys.stdout, {}, clips={1: 8, 2: 8}))
        return DONE
    lines = [
        [
            record.name,
            record.version,
            record.origin,
            ", ".join(h.removeprefix("chrootfw_") for h in record.hooks),
        ]
        for record in records
    ]
    lines += [[record.name, record.version, record.origin, "left out"] for record in left_out]
    header = ["PLUGIN", "VERSION", "BAND", "HOOKS"]
    render.show(render.table(header, lines, sys.stdout, {}, folds_last=True))
    for brief in failures:
        render.show(f"not loaded: {brief}", sys.stderr)
    return DONE


def _plugin_to_dict(record: PluginRecord) -> dict[str, Any]:
    """Return a plugin for JSON, whose keys stay as they were."""
    import attrs

    return {
        "band" if key == "origin" else key: value for key, value in attrs.asdict(record).items()
    }


def show_parameters(options: argparse.Namespace) -> int:
    """Show the parameters; return the exit status."""
    from chrootfw import config
    from chrootfw.cli import render

    runtime, _ = _runtime(options)
    found = runtime.parameters()
    if options.parameters:
        known = [parameter.name for _, parameter in found]
        for name in options.parameters:
            if name not in known:
                near = nearest(name, known)
                hint = f"chrootfw parameters {near}".rstrip()
                raise InputError(f"there is no parameter {name}", hint=hint)
        found = [each for each in found if each[1].name in options.parameters]
    origins = {record.name: record.origin for record in runtime.plugins()}

    def subject(plugin: str, parameter: str) -> str:
        if origins.get(plugin, "default") not in ("default", "first-party"):
            return plugin
        return next((key for key, names in _SUBJECTS.items() if parameter in names), plugin)

    if options.json:
        rows = [
            {
                "name": parameter.name,
                "type": config.type_text(parameter),
                "default": list(parameter.default)
                if isinstance(parameter.default, tuple)
                else parameter.default,
                "help": parameter.help,
                "plugin": plugin,
            }
            for plugin, parameter in found
        ]
        render.show_json({"parameters": rows})
        return DONE
    if options.quiet:
        render.show(Lines(parameter.name for _, parameter in found))
        return DONE
    groups: dict[str, list[Parameter]] = {key: [] for key in _SUBJECTS}
    for plugin, parameter in found:
        groups.setdefault(subject(plugin, parameter.name), []).append(parameter)
    for key, names in _SUBJECTS.items():
        groups[key].sort(key=lambda each: names.index(each.name))
    shown = {key: declared for key, declared in groups.items() if declared}
    render.show(render.parameters(shown, sys.stdout))
    return DONE


def show_effective(options: argparse.Namespace) -> int:
    """Show the parameters of an instance and where they come from; return the exit status."""
    from chrootfw.cli import render

    runtime, _ = _runtime(options)
    found = runtime.effective_parameters(options.name)
    if found.definition_changed:
        text = f"{found.definition} has changed since the start; the next start takes it up"
        _warn(text, options.name)
    if options.json:
        render.show_json(found.to_dict())
        return DONE
    origins = {record.name: record.origin for record in runtime.plugins()}
    render.show(render.effective(found, origins, sys.stdout))
    return DONE


def show_plan(options: argparse.Namespace) -> int:
    """Show the plan of a verb; return the exit status."""
    from chrootfw.cli import parser, render, verb_table

    verb = verb_table.find_verb(options.what)
    assert verb is not None
    for option in parser.given_options(options):
        if option not in verb_table.list_options(verb):
            hint = f"chrootfw {options.what} --help"
            raise InputError(f"{options.what} has no option {option}", hint=hint)
    runtime, _ = _runtime(options)
    instance: Instance | str = options.name
    if options.what == "start":
        instance, _ = _instance(options, options.name, runtime)
    how = {}
    if options.what == "stop":
        how = {
            "force": options.force,
            "timeout": options.timeout,
            "run_script": False if options.no_script else None,
            "keep_mounted": options.keep_mounted,
            "kill_holders": options.kill_holders,
        }
    plan = runtime.plan(options.what, instance, **how)
    if options.json:
        render.show_json(plan.to_dict())
    else:
        render.show(render.plan(plan, sys.stdout))
    return DONE


def _warn(text: str, name: str = "") -> None:
    """Print a warning of a verb that has no events."""
    from chrootfw.cli import render

    render.keep_warning(text, instance=name)
    render.show(render.event("warning", text, sys.stderr), sys.stderr)


def execute(options: argparse.Namespace) -> int:
    """Run a command inside an instance; return the exit status."""
    from chrootfw.lifecycle.exec import run_command

    command: list[str] = options.command
    if not command:
        raise InputError("exec needs a command", hint="chrootfw exec NAME -- COMMAND …")
    if not command[0]:
        raise InputError("the command is empty", hint="chrootfw exec NAME -- COMMAND …")
    env = {}
    for setting in options.env:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--env {setting!r} is not NAME=VALUE")
        env[key] = value
    _need_root(f"run a command in {options.name}")
    _revive_logger(options, options.name)
    try:
        return run_command(
            *_directories(options),
            options.name,
            command,
            user=options.user,
            env=env,
            cwd=options.cwd,
            on_terminal=options.tty,
            warn=_warn,
        )
    except OSError as error:
        return _report_not_run(options, error)


def _report_not_run(options: argparse.Namespace, error: OSError) -> int:
    """Report that a command could not be run inside; return the exit status.

    Raises:
        ChrootfwError: The reason is not the command itself.
    """
    import errno

    from chrootfw.linux.spawn import is_of_execve

    brief = f"cannot run {options.command[0]} in {options.name}: {error.strerror or error}"
    if not is_of_execve(error):
        where = f" ({error.filename})" if error.filename else ""
        raise ChrootfwError(f"{brief}{where}") from error
    from chrootfw.cli import render

    render.show(f"chrootfw: {brief}", sys.stderr)
    for note in getattr(error, "__notes__", ()):
        render.show(f"  {note}", sys.stderr)
    return EXEC_MISSING if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXEC_NOT_EXECUTABLE


def open_shell(options: argparse.Namespace) -> int:
    """Open a shell inside an instance; return the exit status."""
    from chrootfw.lifecycle.exec import run_shell

    _need_root(f"open a shell in {options.name}")
    _revive_logger(options, options.name)
    try:
        return run_shell(
            *_directories(options),
            options.name,
            options.command,
            user=options.user,
            cwd=options.cwd,
            warn=_warn,
        )
    except OSError as error:
        if options.command:
            return _report_not_run(options, error)
        where = f" ({error.filename})" if error.filename else ""
        brief = f"cannot open a shell in {options.name}: {error.strerror or error}{where}"
        raise ChrootfwError(brief, getattr(error, "__notes__", ())) from error


def powercycle(options: argparse.Namespace) -> int:
    """Reset this machine; return the exit status."""
    if not options.yes_really:
        raise InputError(
            "powercycle resets this machine at once, without stopping anything",
            hint="say so: chrootfw powercycle --yes-really",
        )
    from chrootfw.cli import render
    from chrootfw.lifecycle.powercycle import reset_machine

    _need_root("power-cycle this machine")
    render.show(reset_machine())
    return DONE


def write_new_plugin(options: argparse.Namespace) -> int:
    """Write the project of a plugin; return the exit status."""
    from chrootfw.cli import new_plugin, render

    directory, files = new_plugin.write(options.plugin, options.directory)
    if options.json:
        render.show_json({"directory": directory, "files": files})
        return DONE
    import shlex

    # Its environment has chrootfw; Debian's own python3 takes no packages from pip.
    python = shlex.quote(sys.executable)
    commands = (
        f"cd {shlex.quote(directory)}",
        f"{python} -m pip install -e '.[test]'",
        f"{python} -m pytest",
    )
    render.show(
        Lines(
            [
                f"wrote {directory}:",
                *(f"  {file}" for file in files),
                "next:",
                *(f"  {word}" for word in commands),
            ]
        )
    )
    return DONE


def write_completion(options: argparse.Namespace) -> int:
    """Write the completion of a shell; return the exit status."""
    if options.json:
        raise InputError(
            "a completion is a script and has no JSON",
            hint=f"chrootfw completion {options.shell}",
        )
    from chrootfw.cli import completion, render

    render.show(Lines(completion.write(options.shell).rstrip("\n").split("\n")))
    return DONE


def write_man_page(options: argparse.Namespace) -> int:
    """Write a manual page; return the exit status."""
    if options.json:
        raise InputError("a manual page has no JSON", hint="chrootfw man | man -l -")
    from chrootfw.cli import man_pages, render

    render.show(Lines(man_pages.write(options.page).split("\n")))
    return DONE


def run_ganeti(options: argparse.Namespace) -> int:
    """Install, remove or show chrootfw as Ganeti's hypervisor; return the exit status."""
    from chrootfw_ganeti import verbs

    return verbs.run(options)


def show_help(options: argparse.Namespace) -> int:
    """Show the help of the command, of a verb, or a topic; return the exit status."""
    from chrootfw.cli import parser, verb_table

    if options.json:
        raise InputError(
            "the help is text for people and has no JSON", hint="leave out --json: chrootfw help"
        )
    from chrootfw.cli.topics import TOPICS

    if options.topic in TOPICS:
        from chrootfw.cli import render

        render.show(Lines(TOPICS[options.topic].split("\n")))
        return DONE
    verb = verb_table.find_verb(options.topic or "help")
    if verb is None:
        raise parser.unknown_topic(options.topic, TOPICS)
    words = [verb.name, "--help"] if options.topic else ["--help"]
    parser.make_parser().parse_args(words)  # prints it and ends (SystemExit)
    return DONE


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    if options.json:
        raise InputError(
            "the demo shows text for people and has no JSON",
            hint="leave out --json; list, info, ps, plan and verify have it",
        )
    from chrootfw.cli import demo

    return demo.main()


def _directories(options: argparse.Namespace) -> tuple[str, str]:
    run_dir = options.run_dir or os.environ.get("CHROOTFW_RUN_DIR") or "/run/chrootfw"
    config_dir = options.config_dir or os.environ.get("CHROOTFW_CONFIG_DIR") or "/etc/chrootfw"
    check_absolute(run_dir, what="the run directory")
    check_absolute(config_dir, what="the configuration directory")
    try:
        is_directory = stat.S_ISDIR(os.stat(config_dir).st_mode)
    except OSError:
        return run_dir, config_dir  # who reads it says what is the matter
    if not is_directory:
        raise InputError(
            f"the configuration directory {config_dir} is not a directory",
            hint="give the directory of the definitions: chrootfw --config-dir DIR list",
        )
    return run_dir, config_dir


def _revive_logger(options: argparse.Namespace, name: str) -> None:
    """Start the logger of an instance again if it was killed."""
    run_dir, _ = _directories(options)
    check_name(name)
    if os.path.exists(f"{run_dir}/{name}/output.json"):
        from chrootfw.state import output_record

        record = output_record.read(run_dir, name)
        if record is None or os.geteuid() != 0 or not record.has_lost_logger():
            return
        from chrootfw.state.snapshot import read_instance

        if output_record.find_pipe(read_instance(run_dir, name), name, record):
            from chrootfw.lifecycle.output import revive_logger

            if warning := revive_logger(run_dir, name):
                _warn(warning, name)


def _print_reports() -> None:
    """Print what Python reports by itself in one line, escaped.

    Most of it is about plugins' threads and clean-ups.
    """
    import threading
    import warnings

    from chrootfw.cli import render

    def show(what: str, error: object) -> None:
        render.show(f"chrootfw: {what}: {type(error).__name__}: {error}", sys.stderr)

    def warn(
        message: Any, category: type[Warning], filename: str, lineno: int, *_more: Any
    ) -> None:
        render.show(f"chrootfw: {filename}:{lineno}: {category.__name__}: {message}", sys.stderr)

    threading.excepthook = lambda failed: show("a thread failed", failed.exc_value)
    sys.unraisablehook = lambda failed: show("an error that is not passed on", failed.exc_value)
    warnings.showwarning = warn  # type: ignore[assignment]  # it is given two more, which are not wanted


def _runtime(options: argparse.Namespace, *, names: bool = False) -> tuple[Runtime, Progress]:
    import logging

    from chrootfw.runtime import Runtime

    _directories(options)
    logger = logging.getLogger("chrootfw")
    if not logger.handlers:  # the command prints every event itself; logging would do so too
        logger.addHandler(logging.NullHandler())
    if is_command:
        _print_reports()
    if options.traceback:
        os.environ["CHROOTFW_DEBUG"] = "1"
    line = None
    if hasattr(options, "names") and not (options.json or options.quiet):
        from chrootfw.cli import render

        is_terminal = (
            render.is_terminal(sys.stderr)
            and os.environ.get("TERM") != "dumb"
            and os.environ.get("CHROOTFW_PROGRESS") != "0"
        )
        if is_terminal or options.verbose:
            from chrootfw.cli.live import LiveLine

            line = LiveLine(options.verb, is_terminal=is_terminal)
    progress = Progress(verbose=options.verbose, names=names, line=line)
    runtime = Runtime(
        discover=not options.no_plugins,
        instance_plugins=not options.no_plugins,
        without=options.without,
        run_dir=options.run_dir,
        config_dir=options.config_dir,
        lock_timeout=options.lock_timeout,
        on_event=progress,
        isolate_plugins=True,
    )
    return runtime, progress


def _instance(
    options: argparse.Namespace, name: str, runtime: Runtime
) -> tuple[Instance | str, str | None]:
    """Return the instance to start, and its definition's text.

    That is its definition with the options beside it, which apply to this start only.
    """
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
        return name, None
    return runtime.instance(name, changes, settings)


def _need_root(verb: str) -> None:
    if os.geteuid() != 0:
        from chrootfw.errors import PrivilegeError

        raise PrivilegeError(f"only the root user can {verb}", hint="run it with sudo, or as root")
