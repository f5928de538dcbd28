"""What ``list`` chooses, orders and shows: on a terminal it fits, in a pipe its form is stable."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

import chrootfw
from chrootfw.cli import listing, main, parser, render
from chrootfw.model import Plan, PlannedStep
from chrootfw.state import show


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHROOTFW_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", str(tmp_path))
    for name in ("node10", "node2", "db"):
        (tmp_path / f"{name}.toml").write_text(f'grace = 3\ndisk = "/srv/{name}.img" # its own\n')
    return tmp_path


def _listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    assert main.main(["list", *words]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_names_and_disks_of_what_is_defined(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *rows = _listed(capsys)
    assert header == ["NAME", "STATE", "PROCS", "MEMORY", "CPU", "STARTED", "DISK"]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("db", "absent", "/srv/db.img"),
        ("node2", "absent", "/srv/node2.img"),
        ("node10", "absent", "/srv/node10.img"),
    ]
    assert main.main(["info", "db", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["disk"] == "/srv/db.img"


def test_what_is_chosen(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _listed(capsys, "-q", "node*") == [["node2"], ["node10"]]
    assert _listed(capsys, "-q", "--state", "absent", "db", "node10") == [["db"], ["node10"]]
    assert _listed(capsys, "-q", "--state", "running") == []
    assert _listed(capsys, "x*") == [["no", "instance", "fits", "x*"]]
    assert _listed(capsys, "--columns", "disk,name", "db") == [
        ["DISK", "NAME"],
        ["/srv/db.img", "db"],
    ]
    assert main.main(["list", "--columns", "NAM"]) == 2
    assert "hint: chrootfw list --columns NAME" in capsys.readouterr().err
    assert main.main(["list", "--columns", "name,nam"]) == 2
    assert "list has no column 'nam'" in capsys.readouterr().err


def _info(name: str, state: str = "running", **more: object) -> chrootfw.InstanceInfo:
    return chrootfw.InstanceInfo(name, chrootfw.InstanceState(state), f"/run/{name}", **more)


def test_the_order() -> None:
    found = [_info("a10", memory_bytes=1), _info("a9", memory_bytes=7), _info("b", "absent")]

    def names(*words: str) -> list[str]:
        return [info.name for info in listing.choose(found, parser.parse(["list", *words]))]

    assert names() == ["a9", "a10", "b"]
    assert names("--sort", "memory") == ["a9", "a10", "b"]
    assert names("--sort", "state") == ["b", "a9", "a10"]


class _Plain(_Terminal):
    """A terminal of the locale C, without Python's coercion to UTF-8."""

    encoding = "ascii"


@pytest.mark.parametrize("terminal", [_Terminal, _Plain])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal(
    width: int, terminal: type[_Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = [
        _info("x" * 104, disk="/srv/" + "long/" * 20 + "end.img", memory_bytes=2**20),
        _info("short", "held", disk="/srv/short.img"),
    ]
    stream = terminal()
    render.show(render.instances(found, stream), stream)
    lines = stream.getvalue().splitlines()
    plain = [_without_colours(line) for line in lines]
    assert max(map(len, plain)) <= width
    assert plain[1].endswith("end.img"), "the end of a path says more than its beginning"
    assert plain[2].startswith("short ")
    assert plain[-1] == "2 instances: 1 held, 1 running"
    piped = render.instances(found, io.StringIO()).splitlines()
    assert len(piped) == 3
    assert "x" * 104 in piped[1]


def test_a_narrow_terminal_keeps_the_names_before_the_disks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    names = ["accounting-database-production-01", "accounting-database-production-02"]
    found = [_info(name, disk=f"/srv/images/{name}.img") for name in names]
    shown = render.instances(found, _Terminal(), tuple(render.LIST_COLUMNS))
    assert all(name in shown for name in names)


def _without_colours(line: str) -> str:
    return re.sub("\033\\[[0-9;]*m", "", line)


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("disk = '/srv/a b'\n", "/srv/a b"),
        ('  disk="/srv/x"# y\n', "/srv/x"),
        ('binds = [\n  "disk = /y",\n]\ndisk = "/srv/x"\n', "/srv/x"),
        ('limits = {a = 1}\n[t]\ndisk = "/no"\n', None),
        ('motd = """\ndisk = "/no"\n"""\n', None),
        ('disk = "/srv/\\u0041"\n', None),
        ("disk = 3\n", None),
        ("disk\n", None),
        ("", None),
    ],
)
def test_the_disk_of_a_definition(tmp_path: Path, text: str, disk: str | None) -> None:
    (tmp_path / "web1.toml").write_text(text)
    assert show.defined_disk(str(tmp_path), "web1") == disk


def test_parameters_fit_and_name_the_near_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main(["parameters", "--no-plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  grace = 10.0  (float, in s)" in lines or "  grace = 10  (float, in s)" in lines
    assert main.main(["parameters", "grace", "--json"]) == 0
    (parameter,) = json.loads(capsys.readouterr().out)["parameters"]
    assert parameter["name"] == "grace"
    assert main.main(["parameters", "grac"]) == 2
    assert "hint: chrootfw parameters grace" in capsys.readouterr().err


def test_parameters_are_grouped_by_subject_as_on_their_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/parameters.md").read_text("utf-8")
    written = re.findall(r"^(?:### (.+)|% generated: parameter (\w+))", page, re.MULTILINE)
    assert main.main(["parameters"]) == 0
    printed = re.findall(r"^(?:(\S.*):|  (\w+) = .*)$", capsys.readouterr().out, re.MULTILINE)
    assert printed[: len(written)] == written


@pytest.mark.parametrize("name", ["a/b", ".x*", "", "a b"])
def test_what_cannot_be_a_name_is_refused(
    machine: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["list", "db", name]) == 2
    assert "the instance name" in capsys.readouterr().err


def test_info_of_what_is_absent_has_no_line_about_what_is_not_there(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["info", "db"]) == 0
    assert capsys.readouterr().out == "db: absent\n  disk        /srv/db.img\n"


@pytest.mark.parametrize("terminal", [_Terminal, _Plain])
def test_checks_plans_and_plugins_are_folded_on_a_terminal(
    terminal: type[_Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    words = " ".join(["word"] * 30)
    checks = [
        chrootfw.Check("kernel", "ok", "fit"),
        chrootfw.Check("cgroup", "warning", words, words),
        chrootfw.Check(f"definition {'x' * 40}", "ok", words),
    ]
    steps = [PlannedStep("kill", words, "quit"), PlannedStep("unmount", "unmount /x", "")]
    rows = [["a", words], ["b", "c"]]

    def texts(stream: io.StringIO) -> list[str]:
        return [
            render.checks(checks, stream),
            render.plan(Plan("stop", "web1", tuple(steps)), stream),
            render.table(["A", "B"], rows, stream, {}, folds_last=True),
        ]

    for text, whole in zip(texts(terminal()), texts(io.StringIO()), strict=True):
        lines = [_without_colours(line) for line in text.splitlines()]
        assert max(map(len, lines)) <= 60
        assert len(lines) > len(whole.splitlines())
        assert " ".join(" ".join(lines).split()) == " ".join(whole.split())
    shown = render.checks(checks, io.StringIO()).splitlines()
    assert shown[0] == "ok       kernel  fit", "a long name widens no column but its own"


def test_info_and_ps_take_several_names_and_patterns(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["info", "db", "node*", "db"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if ":" in line] == [
        "db: absent",
        "node2: absent",
        "node10: absent",
    ]
    assert main.main(["ps", "db", "node2"]) == 0
    assert main.main(["info", "x*"]) == 3
    assert "no instance fits x*" in capsys.readouterr().err


def test_processes_of_several_are_told_apart() -> None:
    process = chrootfw.Process(7, "nginx", "root", "cgroup", "")
    header, row = render.process_table(
        [("web1", process)], io.StringIO(), has_names=True
    ).splitlines()
    assert (header.split()[:2], row.split()[:2]) == (["NAME", "PID"], ["web1", "7"])


def test_what_is_mounted_and_has_no_definition() -> None:
    error = show.not_found("web2", "/etc/chrootfw", ["web1", "web2"])
    assert error.brief == "web2 has no definition"
    assert "did you mean" not in error.hint
    assert "chrootfw start web2 --disk" in error.hint
