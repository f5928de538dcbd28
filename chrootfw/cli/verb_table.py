"""The table of verbs: what each is called, its options, examples and help.

A new verb is one entry of ``VERBS`` and one function in ``verbs``. The parser, ``--help``, the
completion and the documentation's pages about the verbs come from the table.
"""

from __future__ import annotations

from chrootfw.cli import verbs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any


class Argument:
    """One argument of a verb: the words of ``add_argument``, before argparse is imported.

    Args:
        names: The option's names (str), or the name of a positional argument.
        how: The keywords of ``ArgumentParser.add_argument``. ``type="seconds"`` is a number of
            seconds within 0 and a day, ``type="count"`` a whole number, ``type="path"`` a path on
            the host, which may be relative to the caller's directory;
            ``action="append_everywhere"`` also keeps what stands before the verb.
    """

    __slots__ = ("how", "names")

    def __init__(self, *names: str, **how: Any) -> None:
        self.names = names
        self.how = how

    @property
    def is_option(self) -> bool:
        """Return whether the argument has a name to be typed, such as ``--disk``."""
        return self.names[0].startswith("-")

    @property
    def takes_value(self) -> bool:
        """Return whether the argument is an option with a value behind it."""
        return self.is_option and self.how.get("action") not in (
            "store_true",
            "store_const",
        )


class OneOf:
    """Arguments of which at most one may be given.

    Args:
        arguments: The arguments.
    """

    __slots__ = ("arguments",)

    def __init__(self, *arguments: Argument) -> None:
        self.arguments = arguments


class Verb:
    """One verb of the command line.

    Args:
        name: The word (str).
        run: The function in ``verbs`` that carries it out and returns the exit status.
        help: One line (str), shown by ``--help``.
        group: Where the help lists it, one of ``GROUPS``.
        examples: Command lines without ``chrootfw`` (str), each with what it does, for the help.
        arguments: The verb's own arguments, beside those of every verb.
        keeps_directory: Whether the verb works in the caller's directory; others change to ``/``,
            so that a caller inside an instance does not keep the instance's mounts busy.
        runs_command: Whether the words behind NAME are a command of the instance's own.
        needs_command: Whether that command must be given.
        is_inside: Whether the exit status is that of what runs inside.
        has_json: Whether there is an answer in JSON; where not, errors have one all the same.
    """

    __slots__ = (
        "arguments",
        "examples",
        "group",
        "has_json",
        "help",
        "is_inside",
        "keeps_directory",
        "name",
        "needs_command",
        "run",
        "runs_command",
    )

    def __init__(
        self,
        name: str,
        run: Callable[[argparse.Namespace], int],
        help: str,
        *arguments: Argument | OneOf,
        group: str,
        examples: tuple[tuple[str, str], ...] = (),
        keeps_directory: bool = False,
        runs_command: bool = False,
        needs_command: bool = False,
        is_inside: bool = False,
        has_json: bool = True,
    ) -> None:
        self.name = name
        self.run = run
        self.help = help
        self.group = group
        self.examples = examples
        self.arguments = arguments
        self.keeps_directory = keeps_directory
        self.runs_command = runs_command
        self.needs_command = needs_command
        self.is_inside = is_inside
        self.has_json = has_json


#: The options of every verb, before it or behind it.
EVERYWHERE = (
    Argument("--no-plugins", action="store_true", help="load the default plugins only"),
    Argument(
        "--without",
        action="append_everywhere",
        default=[],
        metavar="PLUGIN",
        help="leave out a plugin; may be repeated",
    ),
    Argument(
        "--lock-timeout",
        type="seconds",
        default=10.0,
        metavar="S",
        help="seconds to wait for another command (10)",
    ),
    Argument(
        "--traceback",
        action="store_true",
        help="show the whole traceback of what a plugin's code raised (CHROOTFW_DEBUG=1)",
    ),
    Argument(
        "--run-dir",
        type="path",
        default=None,
        metavar="DIR",
        help="where instances are mounted (/run/chrootfw; CHROOTFW_RUN_DIR)",
    ),
    Argument(
        "--config-dir",
        type="path",
        default=None,
        metavar="DIR",
        help="where definitions are (/etc/chrootfw; CHROOTFW_CONFIG_DIR)",
    ),
    Argument(
        "--color",
        action="colour",
        choices=("auto", "always", "never"),
        default="auto",
        metavar="WHEN",
        help="auto, always or never; auto: on a terminal, unless NO_COLOR is set or TERM is dumb",
    ),
    Argument(
        "-q",
        "--quiet",
        action="store_true",
        help="print no sentence about success; list and parameters print names only",
    ),
    Argument("-v", "--verbose", action="store_true", help="show every step and how long it took"),
    Argument("--json", action="store_true", help="answer in JSON, errors too"),
)

_NAME = Argument("name", metavar="NAME", help="the instance")
#: Those of a verb that shows several.
_SHOWN_NAMES = Argument(
    "names", metavar="NAME", nargs="+", help="the instance; or several, also patterns, as 'db*'"
)
#: Those of a verb that works on several.
_NAMES = (
    Argument("names", metavar="NAME", nargs="*", help="the instances; also patterns, as 'db*'"),
    Argument("--all", action="store_true", help="all for which there is something to do"),
)
_USER = Argument(
    "--user",
    metavar="USER",
    help="a name or number of the root's own /etc/passwd, or USER:GROUP",
)
_CWD = Argument("--cwd", metavar="DIR", help="the working directory inside")

#: What changes a definition for one start.
DEFINITION = (
    Argument(
        "--disk",
        type="path",
        metavar="PATH",
        help="block device, image file or directory, for this start only",
    ),
    OneOf(
        Argument("--init-script", metavar="PATH", help="path inside the root"),
        Argument("--no-init", action="store_true", help="mount only"),
    ),
    Argument(
        "--set",
        action="append",
        default=[],
        metavar="PARAM=VALUE",
        help="a parameter as a TOML value; may be repeated",
    ),
)

#: How a stop ends processes.
STOP = (
    Argument(
        "--timeout",
        type="seconds",
        metavar="S",
        help="grace period in seconds between TERM and KILL",
    ),
    Argument("--force", action="store_true", help="no init script; KILL at once"),
    Argument("--no-script", action="store_true", help="do not run the init script"),
    Argument("--keep-mounted", action="store_true", help="end the processes only"),
    Argument(
        "--kill-holders",
        action="store_true",
        help="signal outside processes that use the mounts, too",
    ),
)

#: The groups of the help, in its order.
GROUPS = ("run", "look", "set up", "help")

#: The verbs, in the order of ``--help``.
VERBS = (
    Verb(
        "demo",
        verbs.run_demo,
        "a whole life on this machine, from the image to the stop",
        group="help",
        examples=(("demo", "make an image, start it, show a page from inside, stop it"),),
        keeps_directory=True,
        has_json=False,
    ),
    Verb(
        "start",
        verbs.start,
        "mount, check, and run the init script with start",
        *_NAMES,
        Argument(
            "--if-needed", action="store_true", help="what is already running is not an error"
        ),
        *DEFINITION,
        group="run",
        examples=(
            ("start web1", "as /etc/chrootfw/web1.toml says"),
            ("start web1 --disk ./web1.img --no-init", "without a definition; mount only"),
            ("start web1 --set grace=2", "another parameter, for this start only"),
            ("start --all", "everything that is defined and not running"),
        ),
    ),
    Verb(
        "stop",
        verbs.stop,
        "end the processes, unmount, prove that nothing is left",
        *_NAMES,
        *STOP,
        group="run",
        examples=(
            ("stop web1", "script, TERM, KILL, unmount"),
            ("stop web1 --force", "no script, KILL at once"),
            ("stop web1 --kill-holders", "end outside processes that use the mounts, too"),
            ("stop web1 'db*'", "several, side by side"),
        ),
    ),
    Verb(
        "reboot",
        verbs.reboot,
        "stop the processes and start again; the disk stays mounted",
        *_NAMES,
        group="run",
        examples=(("reboot web1", "the disk stays mounted"),),
    ),
    Verb(
        "cleanup",
        verbs.cleanup,
        "unmount and release what is mounted or held",
        *_NAMES,
        Argument(
            "--forget", action="store_true", help="give up what cannot be undone, and name it"
        ),
        group="run",
        examples=(
            ("cleanup web1", "unmount what an earlier stop has left"),
            ("cleanup web1 --forget", "give up what cannot be undone"),
        ),
    ),
    Verb(
        "list",
        verbs.list_instances,
        "every instance, present or defined",
        Argument(
            "patterns", metavar="NAME", nargs="*", help="names or patterns, as 'db*'; else all"
        ),
        Argument(
            "--state",
            action="append",
            default=[],
            choices=("absent", "mounted", "running", "held"),
            metavar="STATE",
            help="only those in a state: absent, mounted, running or held; may be repeated",
        ),
        Argument(
            "--sort",
            choices=("name", "state", "processes", "memory", "cpu", "started"),
            default="name",
            metavar="KEY",
            help="by name (the default), state, processes, memory, cpu or started",
        ),
        Argument("--columns", metavar="NAMES", help="the columns, as NAME,STATE,DISK"),
        group="look",
        examples=(
            ("list", "a table"),
            ("list -q 'db*' --state running", "the names only, of those that are running"),
            ("list --sort memory --columns NAME,MEMORY", "the largest first"),
            ("list --json", "for programs"),
        ),
    ),
    Verb(
        "top",
        verbs.show_top,
        "a live list of the instances, with processors and memory; q ends it",
        Argument(
            "patterns", metavar="NAME", nargs="*", help="names or patterns, as 'db*'; else all"
        ),
        Argument(
            "--sort",
            choices=("cpu", "memory", "processes", "name"),
            default="cpu",
            metavar="KEY",
            help="by cpu (the default), memory, processes or name; the keys c, m, p, n",
        ),
        Argument(
            "--interval",
            type="seconds",
            default=2.0,
            metavar="S",
            help="seconds between two readings (2); reading takes at most a quarter of the time",
        ),
        group="look",
        examples=(
            ("top", "every instance that is present, the busiest first"),
            ("top 'db*' --sort memory --interval 5", "some of them, the largest first"),
        ),
        has_json=False,
    ),
    Verb(
        "info",
        verbs.show_info,
        "instances in full",
        _SHOWN_NAMES,
        group="look",
        examples=(
            ("info web1", "state, mounts, holders, log"),
            ("info web1 'db*'", "several"),
            ("info web1 --json", "for programs"),
        ),
    ),
    Verb(
        "ps",
        verbs.show_processes,
        "the processes of an instance, and outside holders of its mounts",
        _SHOWN_NAMES,
        group="look",
        examples=(("ps web1", "what runs inside, and what holds its mounts"),),
    ),
    Verb(
        "logs",
        verbs.show_logs,
        "what an instance and its init script printed",
        _NAME,
        Argument("-f", "--follow", action="store_true", help="go on with what is printed from now"),
        Argument("-n", "--lines", type="count", metavar="N", help="the last N lines only"),
        OneOf(
            Argument(
                "--start",
                action="store_const",
                const="start",
                dest="script",
                help="the init script's last start only",
            ),
            Argument(
                "--stop",
                action="store_const",
                const="stop",
                dest="script",
                help="the init script's last stop only",
            ),
        ),
        group="look",
        examples=(
            ("logs web1 -n 20", "the last 20 lines"),
            ("logs web1 --start", "what the init script printed at the last start"),
        ),
    ),
    Verb(
        "tree",
        verbs.show_tree,
        "the mounts of an instance as a tree, its processes, outside holders",
        _NAME,
        group="look",
        examples=(
            ("tree web1", "what is mounted where, what runs, and what uses it from outside"),
            ("tree web1 --json", "for programs"),
        ),
    ),
    Verb(
        "show",
        verbs.show_effective,
        "the parameters of an instance, and where each comes from",
        _NAME,
        group="look",
        examples=(
            ("show web1", "those of its start; if it is absent, of its definition"),
            ("show web1 --json", "for programs"),
        ),
    ),
    Verb(
        "node",
        verbs.show_node,
        "the machine: memory, CPUs, disk space",
        group="look",
        examples=(("node", "memory, processors and disk space"),),
    ),
    Verb(
        "metrics",
        verbs.show_metrics,
        "the instances in Prometheus' text format",
        group="look",
        examples=(("metrics", "for the textfile collector of node_exporter"),),
        has_json=False,
    ),
    Verb(
        "verify",
        verbs.verify,
        "whether this machine is fit for chrootfw",
        group="look",
        examples=(("verify", "status 1 if something must be fixed"),),
    ),
    Verb(
        "plugins",
        verbs.show_plugins,
        "the plugins, or those that answer for an instance",
        Argument("name", metavar="NAME", nargs="?", help="the instance"),
        group="set up",
        examples=(
            ("plugins", "all, the first asked first"),
            ("plugins web1", "which one answers each hook for web1"),
        ),
    ),
    Verb(
        "parameters",
        verbs.show_parameters,
        "the parameters that an instance may have",
        Argument("parameters", metavar="PARAM", nargs="*", help="only these"),
        group="set up",
        examples=(
            ("parameters", "all, with their defaults"),
            ("parameters grace binds", "two of them"),
        ),
    ),
    Verb(
        "exec",
        verbs.execute,
        "run a command inside the instance, and return its exit status",
        _NAME,
        _USER,
        Argument(
            "--env",
            action="append",
            default=[],
            metavar="K=V",
            help="added to the clean environment",
        ),
        _CWD,
        Argument(
            "-t",
            "--tty",
            action="store_true",
            help="give the command a terminal of the instance's own",
        ),
        Argument("command", nargs="*", metavar="-- CMD", help="the command and its arguments"),
        group="run",
        examples=(
            ("exec web1 ls -l /", "every word behind ls is the command's"),
            ("exec --user www-data web1 -- id -un", "as another user"),
            ("exec -t web1 top", "with a terminal of the instance's own"),
        ),
        runs_command=True,
        needs_command=True,
        is_inside=True,
    ),
    Verb(
        "shell",
        verbs.open_shell,
        "open a shell on a terminal of the instance's own",
        _NAME,
        _USER,
        _CWD,
        Argument("command", nargs="*", metavar="-- CMD", help="a command in place of the shell"),
        group="run",
        examples=(
            ("shell web1", "the root user's login shell, inside"),
            ("shell web1 --user www-data", "that of another user"),
            ("shell web1 --cwd /tmp -- sh -l", "a command on the terminal"),
        ),
        runs_command=True,
        is_inside=True,
    ),
    Verb(
        "plan",
        verbs.show_plan,
        "the exact steps of a verb, and what would block them; touches nothing",
        Argument(
            "what",
            choices=("start", "stop", "reboot", "cleanup"),
            metavar="VERB",
            help="start, stop, reboot or cleanup, with its own options",
        ),
        _NAME,
        *DEFINITION,
        *STOP,
        group="look",
        examples=(
            ("plan start web1", "each step of a start, and its plugin"),
            ("plan stop web1 --force", "each step of a stop, and its holders"),
        ),
    ),
    Verb(
        "new-plugin",
        verbs.write_new_plugin,
        "write the project of a plugin: module, tests, packaging",
        Argument("plugin", metavar="NAME", help="what the plugin does, such as quit-first"),
        Argument(
            "--directory", metavar="DIR", help="where; empty, or not there yet (./chrootfw-NAME)"
        ),
        group="set up",
        examples=(("new-plugin quit-first", "write ./chrootfw-quit-first"),),
        keeps_directory=True,
    ),
    Verb(
        "ganeti",
        verbs.run_ganeti,
        "install, remove or check the Ganeti hypervisor of this node",
        Argument("what", choices=("install", "remove", "status")),
        Argument(
            "--root", metavar="DIR", default="/", help="a node's tree of files, such as an image"
        ),
        Argument("--force", action="store_true", help="although instances are on this node"),
        Argument(
            "--cluster",
            action="store_true",
            help="with remove, on the master: reset chrootfw's parameters in the cluster first",
        ),
        group="set up",
        examples=(
            ("ganeti status", "whether this node uses chrootfw"),
            ("ganeti install", "make it use chrootfw"),
        ),
    ),
    Verb(
        "completion",
        verbs.write_completion,
        "write the completion of a shell: verbs, options, names",
        Argument(
            "shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish"
        ),
        group="set up",
        examples=(
            ("completion bash", "print it, for a file in /etc/bash_completion.d"),
            ("completion fish", "print that of fish"),
        ),
        has_json=False,
    ),
    Verb(
        "man",
        verbs.write_man_page,
        "write a manual page, for where man does not find it",
        Argument(
            "page",
            choices=("chrootfw", "chrootfw.toml"),
            default="chrootfw",
            nargs="?",
            metavar="PAGE",
            help="chrootfw (the default) or chrootfw.toml, about definitions",
        ),
        group="help",
        examples=(
            ("man", "print chrootfw(8); behind it, | man -l - shows it"),
            ("man chrootfw.toml", "print chrootfw.toml(5)"),
        ),
        has_json=False,
    ),
    Verb(
        "powercycle",
        verbs.powercycle,
        "reset this machine at once",
        Argument("--yes-really", action="store_true", help="do it"),
        group="set up",
        examples=(("powercycle --yes-really", "reset now, without stopping anything"),),
        has_json=False,
    ),
    Verb(
        "help",
        verbs.show_help,
        "the verbs, the help of one, or a topic",
        Argument(
            "topic",
            metavar="VERB",
            nargs="?",
            help="a verb, or exit-status, environment, definition, json",
        ),
        group="help",
        examples=(
            ("help stop", "the options of stop"),
            ("help exit-status", "what the statuses mean"),
        ),
        has_json=False,
    ),
)

#: The verb of each name.
BY_NAME = {verb.name: verb for verb in VERBS}


def find_verb(name: str) -> Verb | None:
    """Return the verb of that name (str), or ``None``."""
    return BY_NAME.get(name)


def list_options(verb: Verb) -> list[str]:
    """Return the long options that a verb takes."""
    return [
        name
        for each in (*EVERYWHERE, *verb.arguments)
        for argument in (each.arguments if isinstance(each, OneOf) else (each,))
        for name in argument.names
        if name.startswith("--")
    ]
