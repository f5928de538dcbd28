"""The topics of ``chrootfw help`` that are not verbs; the manual pages have their tables, too."""

from __future__ import annotations

from chrootfw.cli.exit_status import (
    DONE,
    EXEC_FAILED,
    EXEC_MISSING,
    EXEC_NOT_EXECUTABLE,
    FAILED,
    HELD,
    NOT_FOUND,
    USAGE,
)

#: What the exit status of most verbs means.
EXIT_STATUSES = (
    (f"{DONE}", "done; also stop and cleanup of what is absent already"),
    (f"{FAILED}", "failed: a sentence, details, a hint on stderr; verify found an error"),
    (f"{USAGE}", "wrong usage: a bad option, name or parameter"),
    (f"{NOT_FOUND}", "no such instance: neither present nor defined; for logs, no such log"),
    (f"{HELD}", 'held: "stopped" is not proven; chrootfw names the holders'),
    ("128+n", "ended by signal n (INT, TERM or HUP)"),
)

#: What that of exec and shell means, if it is not of the command inside.
INSIDE_STATUSES = (
    (f"{EXEC_FAILED}", "an error in chrootfw itself, such as an instance that is not started"),
    (f"{EXEC_NOT_EXECUTABLE}", "the command cannot be executed"),
    (f"{EXEC_MISSING}", "the command does not exist"),
)

#: The environment variables of the command.
ENVIRONMENT = (
    ("CHROOTFW_RUN_DIR", "where instances are mounted (/run/chrootfw); --run-dir"),
    ("CHROOTFW_CONFIG_DIR", "where definitions are (/etc/chrootfw); --config-dir"),
    ("CHROOTFW_LOG_DIR", "where output is kept (/var/log/chrootfw)"),
    ("CHROOTFW_NATIVE", "0: without the compiled module; 1: an error without it"),
    ("CHROOTFW_PROGRESS", "0: no live line on a terminal"),
    ("CHROOTFW_DEBUG", "1: the whole traceback of a plugin's error; --traceback"),
    ("NO_COLOR", "if not empty, no colours; --color"),
    ("COLUMNS", "columns of the help, where no terminal tells them"),
)

#: A definition, with what each key means.
DEFINITION = (
    ('disk = "/srv/web1.img"', "block device, image file or directory"),
    ('init_script = "/etc/chrootfw/init"', "path inside the root; false: mount only"),
    ("grace = 10", "seconds between TERM and KILL"),
    ("hardened = true", "contain the root user inside"),
    ('plugins = ["memory:MemoryTmp"]', "plugins for this instance alone"),
)


def _table(rows: tuple[tuple[str, str], ...]) -> str:
    width = max(len(term) for term, _ in rows)
    return "\n".join(f"  {term:<{width}}  {meaning}" for term, meaning in rows)


#: Each topic's text, by its name.
TOPICS = {
    "exit-status": f"""\
Exit status of chrootfw
{_table(EXIT_STATUSES)}
For several instances: the highest of theirs.

exec and shell: the status of the command inside, 128+n if signal n ended it, or
{_table(INSIDE_STATUSES)}""",
    "environment": f"""\
Environment of chrootfw
{_table(ENVIRONMENT)}

What runs inside has an environment of its own; of the caller's it has TERM.""",
    "definition": f"""\
Definition of an instance: /etc/chrootfw/NAME.toml, owned by root, flat keys
{_table(DEFINITION)}

chrootfw parameters lists every key; chrootfw verify checks the definitions;
chrootfw plan start NAME shows what a definition leads to.
A running instance keeps what it was started with: chrootfw info NAME tells
whether its definition has changed since.""",
    "json": """\
JSON: with --json an answer is one object on stdout, an error too
  chrootfw list --json    {"version": 1, "instances": [{"name": "web1", …}, …]}
  an error                {"version": 1, "error": {"kind": …, "brief": …,
                          "details": […], "hint": …}}
Both have "warnings": [{"kind": …, "instance": …, "plugin": …, "text": …}, …].

Keys are added within a version; none is removed or changes its meaning.
For exec and shell, --json stands before the command. demo, help, man,
metrics and completion have none.""",
}
