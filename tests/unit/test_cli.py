"""The command line's own business: usage, closed streams, errors as JSON."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chrootfw import errors
from chrootfw.cli import main, parser, progress, render, topics, verb_table
from chrootfw.cli.natural_order import natural_key


def chrootfw(tmp_path: Path, *argv: str, shell: str = '"$@"') -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "CHROOTFW_RUN_DIR": str(tmp_path / "run"),
        "CHROOTFW_CONFIG_DIR": str(tmp_path / "etc"),
    }
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "chrootfw", *argv]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["bogus"], 2),
        (["list", "--bogus"], 2),
        (["start"], 2),
        (
            ["stop", "nothing"],
            3 if os.geteuid() == 0 else 1,
        ),  # only root can stop: it is not looked for
        (["info", "nothing"], 3),
        (["exec", "--bogus"], 125),
        (["exec", "nothing", "--", "true"], 125),
        (["exec", "nothing", "grep", "--", "x"], 125),
        (["shell", "nothing"], 125),
        (["stop", "nothing", "--timeout", "-1"], 2),
        (["start", "web1", "--disk", "a/../relative"], 2),
        (["plan", "restart", "web1"], 2),
    ],
)
def test_an_error_is_one_sentence_and_a_status_and_the_same_in_json(
    tmp_path: Path, argv: list[str], status: int
) -> None:
    plain = chrootfw(tmp_path, *argv)
    assert plain.returncode == status
    assert plain.stderr.startswith("chrootfw: ")
    assert plain.stdout == ""
    verb, *rest = argv
    told = chrootfw(tmp_path, verb, "--json", *rest)
    assert told.returncode == status
    answer = json.loads(told.stdout)
    assert answer["version"] == 1
    assert set(answer["error"]) == {"kind", "brief", "details", "hint"}
    assert answer["error"]["brief"] in plain.stderr


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_that_take_no_answer_change_nothing(tmp_path: Path, closed: str) -> None:
    assert chrootfw(tmp_path, "list", shell=f'"$@" {closed}').returncode == 0


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path) -> None:
    chrootfw(tmp_path, "parameters", shell='"$@" | true')


_INTERRUPTED_AT_THE_END = """
import os, signal, sys
from chrootfw.cli.main import run

class Last:
    def __init__(self, stream):
        self.write, self.fileno, self.interrupts = stream.write, stream.fileno, True

    def flush(self):
        if self.interrupts:
            self.interrupts = False
            os.kill(os.getpid(), signal.SIGINT)

setattr(sys, sys.argv[1], Last(getattr(sys, sys.argv[1])))
sys.argv[1:] = ["--version"]
raise SystemExit(run())
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_interrupt_in_the_last_moment_is_no_traceback(stream: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_AT_THE_END, stream],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_a_directory_of_ours_must_be_absolute(tmp_path: Path) -> None:
    done = chrootfw(tmp_path, "list", shell='CHROOTFW_RUN_DIR=relative "$@"')
    assert done.returncode == 2
    assert "relative" in done.stderr


@pytest.mark.parametrize("module", ["json", "chrootfw.cli.render", "chrootfw.state.snapshot"])
def test_a_module_that_cannot_be_loaded_is_no_traceback(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    done = chrootfw(
        tmp_path,
        "list",
        "--json",
        shell=f'PYTHONPATH={shlex.quote(str(tmp_path))}:$PYTHONPATH "$@"',
    )
    assert done.returncode == 1
    assert done.stderr.startswith("chrootfw: cannot import a part of chrootfw: ")


def test_streams_that_cannot_be_opened_are_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError(5, "Input/output error", "/dev/null")

    monkeypatch.setattr(main, "_have_stdio", fails)
    assert main.main(["list"]) == 1
    assert capsys.readouterr().err == "chrootfw: Input/output error: /dev/null\n"


def _answered(options: object) -> dict[str, object]:
    """What the verbs may look at; a list that nothing was added to is empty, whatever its type."""
    found = {name: getattr(options, name) for name in dir(options) if not name.startswith("_")}
    return {
        name: list(value) if isinstance(value, list | tuple) else value
        for name, value in found.items()
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (["--no-plugins"], {"no_plugins": True}),
        (["--without", "one"], {"without": ["one"]}),
        (["--lock-timeout", "3"], {"lock_timeout": 3}),
        (["-v"], {"verbose": True}),
        (["-q"], {"quiet": True}),
        (["--run-dir", "/x"], {"run_dir": "/x"}),
        (["--config-dir", "/x"], {"config_dir": "/x"}),
        (["--json"], {"json": True}),
    ],
)
def test_what_goes_everywhere_goes_before_the_verb_too(
    option: list[str], value: dict[str, object]
) -> None:
    defaults = {
        "no_plugins": False,
        "without": [],
        "lock_timeout": 10.0,
        "verbose": False,
        "quiet": False,
        "run_dir": None,
        "config_dir": None,
        "color": "auto",
        "json": False,
    }
    assert defaults.items() <= _answered(parser.parse(["stop", "web1"])).items()
    for words in ([*option, "stop", "web1"], ["stop", *option, "web1"], ["stop", "web1", *option]):
        assert {**defaults, **value}.items() <= _answered(parser.parse(words)).items()


def test_plugins_are_left_out_before_and_after_the_verb() -> None:
    assert parser.parse(["--without", "one", "stop", "--without", "two", "web1"]).without == [
        "one",
        "two",
    ]
    assert parser.parse(["stop", "web1"]).without == []


@pytest.mark.parametrize("verb", verb_table.VERBS, ids=lambda verb: verb.name)
def test_a_verb_has_the_same_help_alone_and_among_all(
    verb: verb_table.Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for only in (verb, None):
        with pytest.raises(SystemExit):
            parser.make_parser(only).parse_args([verb.name, "--help"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert verb.help[1:] in " ".join(shown[0].split())


def test_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help", "list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {verb.name for verb in verb_table.VERBS} <= set(listed)


def test_help_is_that_of_the_command_or_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        assert main.main(list(words)) == 0
        return capsys.readouterr().out

    assert shown() == shown("help") == shown("--help")
    assert shown("help", "stop") == shown("stop", "--help")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["stpo", "web1"], "chrootfw stop"),
        (["shw", "web1"], "chrootfw show"),
        (["tre", "web1"], "chrootfw tree"),
        (["shel", "web1"], "chrootfw shell"),
        (["ls"], "chrootfw list"),
        (["restart", "web1"], "chrootfw reboot"),
        (["rm", "--force", "web1"], "chrootfw cleanup"),
        (["xyzzy"], "chrootfw help"),
    ],
)
def test_a_word_that_is_no_verb_names_the_near_one(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words) == 2
    assert capsys.readouterr().err == f"chrootfw: {words[0]} is not a verb\n  hint: {hint}\n"
    assert main.main([*words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["hint"]) == ("InputError", hint)


@pytest.mark.parametrize(
    ("words", "brief", "hint"),
    [
        ("stop", "stop needs NAME or --all", "chrootfw stop --help"),
        ("stop web1 --all", "stop takes names or --all, not both", "chrootfw stop --help"),
        ("start a b --disk /x", "--disk is for one instance", "chrootfw start NAME --disk PATH"),
        ("stop web1 --forse", "stop has no option --forse", "chrootfw stop web1 --force"),
        (
            "stop web1 --time-out=3",
            "stop has no option --time-out",
            "chrootfw stop web1 --timeout=3",
        ),
        ("start 'a b' --no-int", "start has no option --no-int", "chrootfw start 'a b' --no-init"),
        ("info web1 --xyzzy", "info has no option --xyzzy", "chrootfw info --help"),
        ("list --foo", "list has no option --foo", "chrootfw list --help"),
        ("--nope", "chrootfw has no option --nope", "chrootfw --help"),
        ("-x", "chrootfw has no option -x", "chrootfw --help"),
        ("tree web1 web2", "tree takes no further word: web2", "chrootfw tree --help"),
        ("info", "info needs NAME", "chrootfw info --help"),
        ("start web1 --disk", "--disk needs a value", "chrootfw start --help"),
        (
            "list --color alway",
            "alway is not one of auto, always, never",
            "chrootfw list --color always",
        ),
        (
            "plan strat web1",
            "strat is not one of start, stop, reboot, cleanup",
            "chrootfw plan start",
        ),
        (
            "plan restart web1",
            "restart is not one of start, stop, reboot, cleanup",
            "chrootfw plan reboot",
        ),
        ("''", "'' is not a verb", "chrootfw help"),
        ("plan stop web1 --disk /x", "stop has no option --disk", "chrootfw stop --help"),
        (
            "plan reboot web1 --timeout 0",
            "reboot has no option --timeout",
            "chrootfw reboot --help",
        ),
        ("help strat", "there is no help for strat", "chrootfw help start"),
        ("help enviroment", "there is no help for enviroment", "chrootfw help environment"),
        ("help ls", "there is no help for ls", "chrootfw help list"),
    ],
)
def test_a_typing_error_gets_what_was_meant(
    words: str, brief: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(shlex.split(words)) == 2
    assert capsys.readouterr().err == f"chrootfw: {brief}\n  hint: {hint}\n"


@pytest.mark.parametrize(
    ("command", "verb"),
    [(command, verb) for verb in verb_table.VERBS for command, _ in verb.examples],
)
def test_an_example_of_the_help_is_a_valid_command(command: str, verb: verb_table.Verb) -> None:
    assert parser.parse(shlex.split(command)).verb == verb.name


def test_names_are_in_natural_order() -> None:
    names = ["node10", "node2", "db", "node1", "10", "9", "a1b2", "a1b10"]
    ordered = ["9", "10", "a1b2", "a1b10", "db", "node1", "node2", "node10"]
    assert sorted(names, key=natural_key) == ordered


def test_every_verb_has_an_example() -> None:
    assert not [verb.name for verb in verb_table.VERBS if not verb.examples]


@pytest.mark.parametrize("topic", topics.TOPICS)
def test_a_topic_is_printed_and_fits_the_terminal(
    topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["help", topic]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{topics.TOPICS[topic]}\n"
    assert max(map(len, printed.splitlines())) <= 80


def test_the_help_fits_a_terminal_and_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 48


@pytest.mark.parametrize("columns", ["0", "1", "2", "-1", "x", "9" * 5000])
def test_no_width_prevents_a_verb(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert parser.parse(["stop", "web1"]).names == ["web1"]
    with pytest.raises(SystemExit):
        parser.parse(["stop", "--help"])
    assert render.columns(io.StringIO()) is None
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert "web1" in render.table(["NAME"], [["web1"]], stream, {})


def test_a_path_of_the_host_is_seen_from_the_callers_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()

    def disk(path: str) -> str:
        return parser.parse(["start", "web1", "--disk", path]).disk

    assert disk("web1.img") == f"{here}/web1.img"
    assert disk("./a//b/") == f"{here}/a/b"
    assert disk("../x") == f"{os.path.dirname(here)}/x"
    assert disk(".") == here
    assert disk("a/../b") == f"{here}/a/../b", "behind a symbolic link it is another directory"
    assert disk("/srv/x") == "/srv/x"
    assert disk("") == ""
    assert parser.parse(["--run-dir", "run", "list"]).run_dir == f"{here}/run"


def test_a_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main.main(["start", "web1", "--disk", "web1.img"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "chrootfw: argument --disk: the directory from which web1.img is seen cannot be found:"
        " No such file or directory"
    )


def test_a_count_is_limited(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("-1", "x", "1" * 10):
        assert main.main(["logs", "web1", "-n", text]) == 2
        assert f"{text} is not a whole number of 0 to 999999999" in capsys.readouterr().err


def test_an_empty_path_of_a_disk_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["start", "web1", "--disk", ""]) == 2
    assert capsys.readouterr().err == "chrootfw: disk is empty; it must be an absolute path\n"


def test_the_directories_are_options_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHROOTFW_RUN_DIR", "/nonexistent/run")
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", "/nonexistent/etc")
    (tmp_path / "run").mkdir()
    (tmp_path / "web1.toml").write_text('disk = "/srv/web1.img"\n')
    options = ["--config-dir", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    assert main.main(["list", "--json", *options]) == 0
    (info,) = json.loads(capsys.readouterr().out)["instances"]
    assert (info["name"], info["root"]) == ("web1", f"{tmp_path}/run/web1/root")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("when", "environment", "is_terminal", "coloured"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1", "TERM": "dumb"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_when_there_are_colours(
    when: str,
    environment: dict[str, str],
    is_terminal: bool,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = _Terminal() if is_terminal else io.StringIO()
    try:
        render.choose_colours(when)
        assert render.paint("x", "red", stream) == ("\033[31mx\033[0m" if coloured else "x")
    finally:
        render.choose_colours("auto")


def test_signs_of_our_own_can_be_printed_in_any_locale() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", errors="backslashreplace")
    render.show("✓ run … → é", stream)
    stream.flush()
    assert written.getvalue() == b"+ run ... -> \\xe9\n"


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_the_words_of_a_command_are_its_own(dashes: list[str]) -> None:
    command = ["sh", "-c", "--json", "--help"]
    for own in (
        ["exec", "web1"],
        ["exec", "--user", "1", "web1"],
        ["--lock-timeout", "3", "exec", "web1"],
    ):
        options = parser.parse([*own, *dashes, *command])
        assert (options.verb, options.name, options.command) == ("exec", "web1", command)
        assert options.json is False


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--version"], 1),
        (["--help"], 1),
        (["list"], 1),
        (["list", "--json"], 1),
        (["node"], 1),
        (["node", "--json"], 1),
        (["verify"], 1),
        (["plugins", "--json"], 1),
        (["parameters"], 1),
        (["stop", "nothing"], 3),
        (["stop", "nothing", "--json"], 3),
        (["bogus"], 2),
        (["exec", "nothing", "--", "true"], 125),
        (["exec", "--json", "nothing", "--", "true"], 125),
    ],
)
@pytest.mark.parametrize(
    "streams",
    [
        ">/dev/full",
        ">/dev/full 2>/dev/full",
        ">/dev/full 2>&-",
        ">&-",
        "<&- >&-",
        ">&- 2>&-",
        ">&- 2>/dev/full",
    ],
)
def test_an_answer_that_cannot_be_printed_is_a_failure(
    tmp_path: Path, argv: list[str], status: int, streams: str
) -> None:
    done = chrootfw(tmp_path, *argv, shell=f'"$@" {streams}')
    assert done.returncode == status
    if status == 1 and "2>" not in streams:
        why = "No space left on device" if "full" in streams else "Bad file descriptor"
        assert done.stderr == f"chrootfw: cannot write to standard output: {why}\n"
    elif "2>" not in streams:
        assert done.stderr.startswith("chrootfw: ")


@pytest.mark.parametrize(
    "streams",
    ["2>/dev/full", "2>&-", "<&- 2>&-", ">&- 2>&-", "2>&1 | true", "2>/dev/full >/dev/full"],
)
@pytest.mark.parametrize(
    ("argv", "status"), [(["stop", "nothing"], 3), (["stop", "a b"], 2), (["shell", "x"], 125)]
)
def test_an_error_that_cannot_be_printed_has_its_status(
    tmp_path: Path, argv: list[str], status: int, streams: str
) -> None:
    done = chrootfw(tmp_path, *argv, shell=f'{{ "$@"; echo $? >{tmp_path}/status; }} {streams}')
    assert (tmp_path / "status").read_text() == f"{status}\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("argv", "status", "as_json"),
    [
        (["exec", "nothing", "--", "curl", "--json"], 125, False),
        (["exec", "nothing", "curl", "--json"], 125, False),
        (["exec", "nothing", "--user", "0", "--", "--json"], 125, False),
        (["exec", "--user", "0", "nothing", "curl", "--json", "--", "x"], 125, False),
        (["exec", "--json", "nothing", "--", "true"], 125, True),
        (["exec", "nothing", "--json", "--", "true"], 125, True),
        (["--json", "exec", "nothing", "true"], 125, True),
        (["--lock-timeout", "5", "exec", "nothing", "--", "true"], 125, False),
        (["--lock", "5", "exec", "nothing", "true"], 125, False),
        (
            [
                "--without",
                "x",
                "-v",
                "exec",
                "--env",
                "A=b",
                "--cwd",
                "/",
                "nothing",
                "true",
                "--json",
            ],
            125,
            False,
        ),
        (["--", "exec", "nothing", "true", "--json"], 125, False),
        (["exec"], 125, False),
        (["exec", "--json"], 125, True),
        (["exec", "nothing"], 125, False),
        (["exec", "nothing", "--"], 125, False),
        (["exec", "--bogus", "nothing", "true"], 125, False),
        (["exec", "--lock-timeout", "nan", "nothing", "true"], 125, False),
        (["--lock-timeout", "shell", "stop", "nothing"], 2, False),
        (["--without", "exec", "stop", "nothing"], 3, False),
        (["stop", "--", "--json"], 2, False),
        (["shell", "nothing", "--json"], 125, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_stands_behind_the_command_of_exec_is_the_commands(
    tmp_path: Path, argv: list[str], status: int, as_json: bool
) -> None:
    done = chrootfw(tmp_path, *argv)
    assert done.returncode == status, done
    assert bool(done.stdout) is as_json
    assert bool(done.stderr) is not as_json


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1e400", "-1", "1e10", "²", "x", "", "0x1", "9" * 5000]
)
@pytest.mark.parametrize("option", ["--lock-timeout", "--timeout"])
def test_a_number_that_is_no_time(tmp_path: Path, option: str, value: str) -> None:
    done = chrootfw(tmp_path, "stop", f"{option}={value}", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("chrootfw: ")


def test_an_interrupt_at_any_moment_is_no_traceback(tmp_path: Path) -> None:
    """Of the run itself: an interrupt that comes with the n-th line of its code, behind the first."""
    program = """
import signal, sys
from chrootfw.cli import main as cli, parser, verb_table, verbs
left = int(sys.argv.pop(1))
def trace(frame, event, _argument):
    global left
    if frame.f_code.co_filename == cli.__file__:
        left -= 1
        if not left:
            signal.raise_signal(signal.SIGINT)
    return trace
sys.settrace(trace)
raise SystemExit(cli.run())
"""
    env = {
        **os.environ,
        "CHROOTFW_RUN_DIR": str(tmp_path / "run"),
        "CHROOTFW_CONFIG_DIR": str(tmp_path / "etc"),
    }
    statuses = set()
    for moment in [*range(4, 100, 7), *range(100, 400, 59)]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(moment), "stop", "nothing"],
            env=env,
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr, moment
        assert done.returncode in (130, -2, 3), moment
        statuses.add(done.returncode)
    assert 130 in statuses
    assert 3 in statuses


@pytest.mark.parametrize(
    "after", ["chrootfw.cli.main", "chrootfw.errors", "chrootfw.planning.paths"]
)
def test_an_interrupt_while_the_command_is_loaded_is_no_traceback(
    tmp_path: Path, after: str
) -> None:
    """The process has then ended by the signal."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {after!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""
    )
    script = "from chrootfw.__main__ import run; raise SystemExit(run())"
    for how in (["-m", "chrootfw"], ["-c", script]):
        done = subprocess.run(
            [sys.executable, *how, "list"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_mistake_of_chrootfws_own_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fails(_options: object) -> int:
        raise RecursionError("maximum recursion depth exceeded\n\x1b[2J")

    monkeypatch.setattr(verb_table.find_verb("list"), "run", fails)
    assert main.main(["list"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "chrootfw: internal error: RecursionError: maximum recursion depth exceeded\\n"
    )
    assert "\x1b" not in said
    assert "Traceback" not in said


def test_a_verb_that_ends_the_program_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def ends(_options: object) -> int:
        raise SystemExit("no licence")

    monkeypatch.setattr(verb_table.find_verb("list"), "run", ends)
    assert main.main(["list"]) == 1
    assert capsys.readouterr().err == "chrootfw: the verb was ended by SystemExit: no licence\n"


@pytest.mark.parametrize(
    ("raised", "details"),
    [
        (errors.NotFoundError("there is no instance web1"), ()),
        (
            errors.TrustError("/run/chrootfw can be written to by others"),
            ("what remains of web1 is not known: /run/chrootfw can be written to by others",),
        ),
    ],
)
def test_what_remains_is_said_or_why_it_is_not_known(
    raised: errors.ChrootfwError, details: tuple[str, ...]
) -> None:
    class Runtime:
        def info(self, _name: str) -> None:
            raise raised

    with (
        pytest.raises(errors.Interrupted) as caught,
        progress.ReportOfRemains(Runtime(), "stop", "web1"),
    ):
        raise errors.Interrupted("interrupted by SIGTERM", signum=15)
    assert caught.value.details == details


_PRINTS = """
import chrootfw

class Prints:
    @chrootfw.hookimpl
    def chrootfw_mount(self):
        print("printed by a plugin")
"""


def test_what_a_plugin_prints_is_not_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "printing_plugin.py").write_text(_PRINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHROOTFW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", str(tmp_path))
    setting = 'plugins=["printing_plugin:Prints"]'
    words = ["plan", "start", "web1", "--disk", "/srv/web1.img", "--set", setting, "--json"]
    main.main(words)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["version"] == 1
    assert "printed by a plugin" in printed.err


@pytest.mark.parametrize("verb", verb_table.VERBS, ids=lambda verb: verb.name)
def test_the_help_offers_json_where_there_is_one(
    verb: verb_table.Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse([verb.name, "--help"])
    assert ("  --json" in capsys.readouterr().out) == verb.has_json
