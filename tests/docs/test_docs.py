"""The documentation says all there is to say, and what it says is so."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fenced
import pytest

import chrootfw
from chrootfw import cli, errors, hookspecs, model, planning
from chrootfw.planning import transitions

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
PLAY = Path(__file__).with_name("play.py")

ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

# -- the examples ---------------------------------------------------------------------------------------


@pytest.fixture
def play(
    machine: None, environment: dict[str, str], tmp_path: Path
) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Do the examples of a page, on a machine that the host does not see."""

    def run(page: Path) -> subprocess.CompletedProcess[str]:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        apart = ["unshare", "--mount", "--net", "--propagation", "private"]
        pages = [page] if page == TUTORIAL else [page, TUTORIAL]
        return subprocess.run(
            [*apart, sys.executable, str(PLAY), str(scratch), *map(str, pages)],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run


@each_page
def test_the_examples_do_what_the_page_says(
    play: Callable[[Path], subprocess.CompletedProcess[str]], page: Path
) -> None:
    done = play(page)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("```console\n$ false\n```\n", "exited with 1", id="a command that fails"),
        pytest.param("```console\n$ echo one\ntwo\n```\n", "said:\none\n\nand not:\ntwo", id="another output"),
        pytest.param("```console\n$ echo one\n```\n", "said:\none", id="an output that is not shown"),
        pytest.param("```console\n$ (exit 3)\n$ echo $?\n4\n```\n", "said:\n3", id="another status"),
        pytest.param("```python\nassert 1 == 2\n```\n", "AssertionError", id="an exception"),
        pytest.param("```python\nprint(1)  # 2\n```\n", "printed:\n1", id="another print"),
        pytest.param("```toml\na =\n```\n", "this is no toml", id="a file that is no TOML"),
        pytest.param("```console\n$ chrootfw start web1\n…\n```\n", "leave something", id="an instance that is left"),
    ],
)
def test_an_example_that_does_something_else_is_found(
    play: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path: Path, text: str, says: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    done = play(page)
    assert done.returncode == 1, done.stderr
    assert says in done.stdout


@pytest.mark.parametrize(
    ("shown", "said", "same"),
    [
        ([], "", True),
        ([], "x\n", False),
        (["a b"], "a b\n", True),
        (["a  b"], "a       b   \n\n", True),
        (["a…c"], "abbbc\n", True),
        (["a (… s)"], "a (0.1 s)\n", True),
        (["a…"], "a\nb\n", False),
        (["…"], "", True),
        (["a", "…", "c"], "a\nb\nb\nc\n", True),
        (["a", "…", "c"], "a\nb\n", False),
        (["[…"], "[x\n", True),
        (["a..."], "abc\n", True),
    ],
)
def test_what_an_ellipsis_stands_for(shown: list[str], said: str, same: bool) -> None:
    assert fenced.is_as_shown(shown, said) is same


@each_page
def test_every_block_says_what_it_is(page: Path) -> None:
    """So that none is left out by a slip: these are all the languages, and the first three are done."""
    languages = {
        "console",
        "python",
        "toml",
        "json",
        "text",
        "sh",
        "{toctree}",
        "{eval-rst}",
        "{include}",
        "{literalinclude}",
    }
    strange = [str(block) for block in fenced.blocks(page) if block.language not in languages]
    assert not strange


# -- the reference --------------------------------------------------------------------------------------


class _Reader(html.parser.HTMLParser):
    """The IDs of a page, and the text between the tag with a certain ID and its end."""

    def __init__(self, wanted: str = "") -> None:
        super().__init__()
        self.wanted = wanted
        self.ids: set[str] = set()
        self.depth = 0
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        name = dict(attributes).get("id") or ""
        self.ids.add(name)
        if self.depth or (self.wanted and name == self.wanted):
            self.depth += tag not in ("br", "img", "input", "link", "meta", "hr", "wbr", "col")

    def handle_endtag(self, _tag: str) -> None:
        self.depth -= self.depth > 0

    def handle_data(self, data: str) -> None:
        self.text += data if self.depth else ""


def ids(file: Path) -> set[str]:
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.ids


def section(file: Path, name: str) -> str:
    """The text of the section with an ID."""
    reader = _Reader(name)
    reader.feed(file.read_text(encoding="utf-8"))
    assert reader.text, f"{file.name} has no section {name}"
    return reader.text


@pytest.mark.parametrize(("hook", "kind"), hookspecs.KINDS.items())
def test_every_hook_is_documented(html: Path, hook: str, kind: str) -> None:
    table, _, reference = section(html / "hooks.html", "hooks").partition("Reference")
    assert re.search(rf"^{hook}\(\)\s+{kind}$", table, re.MULTILINE)
    text = re.search(rf"^{hook}\(.*?Added in version", reference, re.MULTILINE | re.DOTALL)
    assert text, "name, arguments and since when"
    assert f"Kind: {kind}" in text[0]
    code = getattr(hookspecs, hook).__code__
    assert not [name for name in code.co_varnames[: code.co_argcount] if f"{name} – " not in text[0]]


def test_every_hook_is_marked_with_its_kind() -> None:
    assert {name for name in vars(hookspecs) if name.startswith("chrootfw_")} == set(hookspecs.KINDS)


VERBS = next(action for action in cli._parser()._actions if action.dest == "verb").choices


@pytest.mark.parametrize("verb", VERBS or ())
def test_every_verb_is_documented_with_its_options(html: Path, verb: str) -> None:
    own, everywhere = section(html / "cli.html", verb), section(html / "cli.html", "options-of-every-verb")
    assert f"chrootfw {verb}" in own
    for action in VERBS[verb]._actions:
        for option in action.option_strings:
            assert action.dest == "help" or option in own or option in everywhere, f"{verb} {option}"
    assert f"% generated: verb {verb}\n" in (DOCS / "cli.md").read_text(), "the options are taken from the parser"


def test_every_exit_status_is_documented(html: Path) -> None:
    text = section(html / "cli.html", "exit-status")
    for status in (cli.DONE, cli.FAILED, cli.USAGE, cli.NOT_FOUND, cli.HELD):
        assert re.search(rf"^{status}$", text, re.MULTILINE)
    for status in (cli.EXEC_FAILED, cli.EXEC_NOT_EXECUTABLE, cli.EXEC_MISSING):
        assert f"{status} " in text


def test_every_parameter_is_documented(html: Path) -> None:
    text = section(html / "parameters.html", "all-parameters").replace("’", "'")
    for _plugin, parameter in chrootfw.Runtime().parameters():
        assert re.search(rf"^{parameter.name}$", text, re.MULTILINE), parameter.name
        assert parameter.help in text


def test_every_exported_name_is_documented(html: Path) -> None:
    documented = ids(html / "hooks.html") | ids(html / "library.html")
    assert not [name for name in chrootfw.__all__ if f"chrootfw.{name}" not in documented and name not in ERRORS]


def test_every_error_is_exported() -> None:
    assert not set(ERRORS) - set(chrootfw.__all__)


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_documented(html: Path, name: str) -> None:
    text = section(html / "library.html", "errors")
    assert re.search(rf"^\W*{name}( {{2,}}\S|$)", text, re.MULTILINE), "it is in the drawing, with a word on what it is"


def test_every_key_of_the_json_is_documented(html: Path) -> None:
    process = chrootfw.Process(1, "a", "b", "cwd")
    info = chrootfw.InstanceInfo(
        "web1", chrootfw.InstanceState.RUNNING, "/r", holders=[process], mounts=[], namespace="x", notes=["y"]
    )
    plan = model.Plan("start", "web1", (model.PlannedStep("mount", "a", "b"),))
    shapes = {
        "list": info.to_dict(), "info": info.to_dict(), "ps": process.to_dict(), "plan": plan.to_dict()["steps"][0],
        "verify": chrootfw.Check("a", "ok", "b").to_dict(), "node": dict.fromkeys(chrootfw.NodeInfo.__slots__),
    }  # fmt: skip
    page = html / "cli.html"
    for verb, shape in shapes.items():
        text = "".join(section(page, name) for name in (("list", "info") if verb in ("list", "info") else (verb,)))
        assert not [key for key in shape if not re.search(rf"\b{key}\b", text)], verb
    assert not [stage for stage in model.STAGES if stage not in section(page, "plan")]


def test_every_state_and_every_refusal_is_documented(html: Path) -> None:
    text = section(html / "life.html", "states")
    for (verb, state), (reason, _hint) in transitions._REFUSALS.items():
        assert verb in ("enter", *VERBS)
        assert state.value in text
        assert reason in text


def test_every_room_is_in_the_design() -> None:
    text = (DOCS / "design.md").read_text()
    drawing = text.partition("## Rooms")[2].partition("```text")[2].partition("```")[0]
    package = Path(planning.__file__).parent.parent
    rooms = {file.stem for file in package.rglob("*.py")} - {"__init__", "__main__"}
    drawn = set(re.findall(r"[a-z_]+", re.sub(r"(?m)(?<=\S) {3,}.*$", "", drawing)))
    assert drawn == rooms | {"planning", "system"}


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links between pages are Sphinx's to check; here are those to files, and those of the README."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not missing
