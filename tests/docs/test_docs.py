"""The documentation says all there is to say, and what it says is so."""

from __future__ import annotations

import ast
import html.parser
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from html import unescape
from pathlib import Path

import diagrams
import fenced
import json_schema
import messages
import prepare
import pytest
import screens

import chrootfw
from chrootfw import errors, model
from chrootfw.cli import exit_status, parser
from chrootfw.hooks import specs
from chrootfw.planning import transitions

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial/first_instance.md"
FOLDERS = ("tutorial", "how-to", "reference", "explanation")
PAGES = [
    DOCS / "index.md",
    *(page for folder in FOLDERS for page in sorted(DOCS.glob(f"{folder}/*.md"))),
    ROOT / "README.md",
]
#: What pages include is no page of its own.
INCLUDED = {"ganeti-table.md"}
DECISIONS = sorted(DOCS.glob("decisions/[0-9]*.md"))
PLAY = Path(__file__).with_name("play.py")

ERRORS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Exception)
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

# -- the examples ---------------------------------------------------------------------------------------


@pytest.fixture
def play(
    machine: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Do the examples of a page, on a machine that the host does not see."""

    def run(page: Path) -> subprocess.CompletedProcess[str]:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        # With pids of its own: the example shows no process of another test as not examined.
        apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        pages = [page] if page == TUTORIAL else [page, TUTORIAL]
        given = (
            {"DEBIAN": str(prepare.debian_system())}
            if "/srv/debian.tar" in page.read_text()
            else {}
        )
        return subprocess.run(
            [*apart, sys.executable, str(PLAY), str(scratch), *map(str, pages)],
            env={**environment, **machine, **given}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
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
        pytest.param(
            "```console\n$ echo one\ntwo\n```\n", "said:\none\n\nand not:\ntwo", id="another output"
        ),
        pytest.param(
            "```console\n$ echo one\n```\n", "said:\none", id="an output that is not shown"
        ),
        pytest.param(
            "```console\n$ (exit 3)\n$ echo $?\n4\n```\n", "said:\n3", id="another status"
        ),
        pytest.param("```python\nassert 1 == 2\n```\n", "AssertionError", id="an exception"),
        pytest.param("```python\nprint(1)  # 2\n```\n", "printed:\n1", id="another print"),
        pytest.param("```toml\na =\n```\n", "this is no toml", id="a file that is no TOML"),
        pytest.param(
            "```console\n$ mkdir /srv/p\n```\n"
            "```{code-block} toml\n:caption: /srv/p/pyproject.toml\n\n"
            '[project]\nname = "p"\nversion = "1"\n[project.entry-points.chrootfw]\np = "p"\n```\n'
            "```console\n$ python3 -c 'import importlib.metadata as m; m.distribution(\"p\")'\n```\n",
            "PackageNotFoundError",
            id="a project that the page does not install",
        ),
        pytest.param(
            "```console\n$ chrootfw start web1\n…\n```\n",
            "leave something",
            id="an instance that is left",
        ),
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
        "ini",
        "{toctree}",
        "{glossary}",
        "{index}",
        "{eval-rst}",
        "{include}",
        "{literalinclude}",
    }
    strange = [str(block) for block in fenced.blocks(page) if block.language not in languages]
    assert not strange


# -- a plugin for each stage ----------------------------------------------------------------------------

#: The modules of the page, the hooks that they answer, and the class that an instance names.
STAGES = {
    "snapshot": ("chrootfw_mount", "Snapshot"),
    "throwaway": ("chrootfw_mount", "Throwaway"),
    "low_space": ("chrootfw_pre_start", "LowSpace"),
    "watched": ("chrootfw_pre_start", "Watched"),
    "runlevel": ("chrootfw_init_script", "Runlevel2"),
    "single": ("chrootfw_init_script", "Single"),
    "quit_first": ("chrootfw_kill_strategy", "QuitFirst"),
    "network_first": ("chrootfw_unmount_ordering", "NetworkFirst"),
}
STAGES_PAGE = fenced.blocks(DOCS / "how-to/stages.md")


@pytest.mark.parametrize("module", STAGES)
def test_a_stage_is_overridden_by_a_plugin_that_an_instance_uses(module: str) -> None:
    hook, attribute = STAGES[module]
    (shown,) = [block for block in STAGES_PAGE if Path(block.caption).name == f"{module}.py"]
    assert f"def {hook}(self" in shown.text
    uses = [
        block
        for block in STAGES_PAGE
        if block.language in ("toml", "console") and block.line > shown.line
    ]
    assert any(
        f'plugins=["{module}:{attribute}"]' in block.text.replace("plugins = ", "plugins=")
        for block in uses
    )


@pytest.mark.parametrize(
    "block", [block for block in STAGES_PAGE if block.language == "python"], ids=str
)
def test_a_plugin_that_overrides_a_stage_has_fifteen_lines_at_most(block: fenced.Block) -> None:
    """All of them as they are shown, empty ones and comments too, none of them a long one."""
    lines = block.text.splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 120
    statements = [
        node.lineno for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.stmt)
    ]
    assert len(statements) == len(set(statements)), "one statement a line"


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


def built(html: Path, page: Path) -> Path:
    """The built page of a Markdown file."""
    return html / page.relative_to(DOCS).with_suffix(".html")


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


@pytest.mark.parametrize(("hook", "kind"), specs.KINDS.items())
def test_every_hook_is_documented(html: Path, hook: str, kind: str) -> None:
    table, _, reference = section(html / "reference/hooks.html", "hooks").partition("Reference")
    assert re.search(rf"^{hook}\(\)\s+{kind}$", table, re.MULTILINE)
    text = re.search(rf"^{hook}\(.*?Added in version", reference, re.MULTILINE | re.DOTALL)
    assert text, "name, arguments and since when"
    assert f"Kind: {kind}" in text[0]
    code = getattr(specs, hook).__code__
    assert not [
        name for name in code.co_varnames[: code.co_argcount] if f"{name} – " not in text[0]
    ]


def test_every_hook_is_marked_with_its_kind() -> None:
    assert {name for name in vars(specs) if name.startswith("chrootfw_")} == set(specs.KINDS)


VERBS = next(action for action in parser.make_parser()._actions if action.dest == "verb").choices


@pytest.mark.parametrize("verb", VERBS or ())
def test_every_verb_is_documented_with_its_options(html: Path, verb: str) -> None:
    own, everywhere = (
        section(html / "reference/cli.html", verb),
        section(html / "reference/cli.html", "options-of-every-verb"),
    )
    assert f"chrootfw {verb}" in own
    for action in VERBS[verb]._actions:
        for option in action.option_strings:
            assert action.dest == "help" or option in own or option in everywhere, (
                f"{verb} {option}"
            )
    assert f"% generated: verb {verb}\n" in (DOCS / "reference/cli.md").read_text(), (
        "the options are taken from the parser"
    )


def test_every_exit_status_is_documented(html: Path) -> None:
    text = section(html / "reference/cli.html", "exit-status")
    for status in (
        exit_status.DONE,
        exit_status.FAILED,
        exit_status.USAGE,
        exit_status.NOT_FOUND,
        exit_status.HELD,
    ):
        assert re.search(rf"^{status}$", text, re.MULTILINE)
    for status in (
        exit_status.EXEC_FAILED,
        exit_status.EXEC_NOT_EXECUTABLE,
        exit_status.EXEC_MISSING,
    ):
        assert f"{status} " in text


def test_every_parameter_is_documented(html: Path) -> None:
    page = html / "reference/parameters.html"
    text = section(page, "all-parameters").replace("’", "'")
    found = chrootfw.Runtime(discover=True).parameters()
    assert {f"confval-{parameter.name}" for _plugin, parameter in found} == {
        each for each in ids(page) if each.startswith("confval-")
    }
    assert not [each.name for _plugin, each in found if each.help[1:] not in text]


def test_every_exported_name_is_documented(html: Path) -> None:
    documented = ids(html / "reference/hooks.html") | ids(html / "reference/library.html")
    assert not [name for name in chrootfw.__all__ if f"chrootfw.{name}" not in documented]


def test_every_error_is_exported() -> None:
    assert not set(ERRORS) - set(chrootfw.__all__)


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_documented(html: Path, name: str) -> None:
    text = section(html / "reference/library.html", "errors")
    assert re.search(rf"^\W*{name}( {{2,}}\S|$)", text, re.MULTILINE), (
        "it is in the drawing, with a word on what it is"
    )
    assert f"chrootfw.{name}" in ids(html / "reference/library.html")
    if name != "ChrootfwError":
        assert "\nRaised by " in (inspect.getdoc(getattr(errors, name)) or ""), (
            "it says what raises it"
        )


def test_every_key_of_the_json_is_documented(html: Path) -> None:
    documented = ids(html / "reference/json.html")
    kinds = tomllib.loads((ROOT / "docs/fields.toml").read_text())
    shapes = {
        kind: json_schema.DEFINITIONS[kind]["properties"] for kind in kinds if kind != "answer"
    }
    keys = [f"json-field-{kind}.{key}" for kind, shape in shapes.items() for key in shape]
    assert len(shapes) > 6
    assert not set(keys) - documented
    text = section(html / "reference/json.html", "plans")
    assert not [stage for stage in model.STAGES if stage not in text]


def test_every_message_that_is_explained_is_one_of_the_code(html: Path) -> None:
    printed = {message.text for message in messages.collect()}
    explained = messages.explained()
    assert len(explained) > 20
    assert not set(explained) - printed
    assert len(ids(html / "reference/messages.html")) > len(printed) - len(explained)


@pytest.mark.parametrize(
    ("query", "kind", "page"),
    [
        ("grace", "confval", "reference/parameters"),
        ("chrootfw start", "verb", "reference/cli"),
        ("chrootfw-start.--disk", "cmdoption", "reference/cli"),
        ("instance.memory_bytes", "json-field", "reference/json"),
        ("the disk … is already in use: …", "message", "how-to/troubleshooting"),
        ("chrootfw.hooks.specs.chrootfw_kill_strategy", "py:function", "reference/hooks"),
        ("chrootfw.HeldError", "py:exception", "reference/library"),
    ],
)
def test_the_search_knows_it_as_an_object(html: Path, query: str, kind: str, page: str) -> None:
    """The search shows objects before the pages that only mention a word."""
    text = (html / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    kinds = {number: name for number, name in index["objtypes"].items()}
    found = {
        (f"{prefix}.{name}" if prefix else name, kinds[str(number)], index["docnames"][document])
        for prefix, entries in index["objects"].items()
        for document, number, _priority, _anchor, name in entries
    }
    domain = kind if ":" in kind else f"std:{kind}"
    assert (query, domain, page) in found


#: Words of a page, without its examples: what is longer is two pages.
LONGEST = 1500


@each_page
def test_no_page_is_long(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) <= LONGEST


def test_every_state_and_every_refusal_is_documented(html: Path) -> None:
    text = section(html / "explanation/life.html", "states")
    for (verb, state), (reason, _hint) in transitions._REFUSALS.items():
        assert verb in ("enter", *VERBS)
        assert state.value in text
        assert reason in text


@pytest.mark.parametrize("record", DECISIONS, ids=lambda record: record.stem)
def test_every_decision_is_a_short_record(record: Path) -> None:
    text = record.read_text()
    number, _, _name = record.stem.partition("-")
    assert text.startswith(f"# {int(number)}. ")
    assert re.findall(r"^(Status|## \w+)", text, re.MULTILINE) == [
        "Status",
        "## Context",
        "## Decision",
        "## Consequences",
    ]
    assert len(text.split()) <= 250
    index = (record.parent / "index.md").read_text()
    assert f"({record.name})" in index
    assert f"\n{record.stem}\n" in index


def test_every_decision_has_a_number_of_its_own() -> None:
    assert [int(record.stem[:4]) for record in DECISIONS] == [*range(1, len(DECISIONS) + 1)]


# -- the pictures ---------------------------------------------------------------------------------------


def _generated(kind: str) -> list[tuple[Path, str]]:
    """The pages that ask for a picture, with its name."""
    return [
        (page, name)
        for page in PAGES
        for name in re.findall(rf"^% generated: {kind} (\w+)", page.read_text(), flags=re.MULTILINE)
    ]


def test_every_picture_that_can_be_drawn_is_shown() -> None:
    assert {name for _, name in _generated("screen")} == {*screens.ANYWHERE, *screens.LIVES}
    assert {name for _, name in _generated("diagram")} == set(diagrams._DIAGRAMS)


@pytest.mark.parametrize(("page", "name"), _generated("screen"))
def test_a_screen_shows_what_its_commands_said_in_colours(
    html: Path, page: Path, name: str
) -> None:
    text = built(html, page).read_text()
    commands = [
        line for line in {**screens.ANYWHERE, **screens.LIVES}[name] if not line.startswith("(")
    ]
    (screen,) = [
        each
        for each in re.findall(r'<pre class="screen">.*?</pre>', text, flags=re.DOTALL)
        if f'<span class="b">{commands[0]}<' in each and f"$ {commands[-1]}\n" in _said(each)
    ]
    said = _said(screen)
    positions = [said.index(f"$ {command}\n") for command in commands]
    assert positions == sorted(positions)
    assert "Traceback" not in said
    assert "\033" not in said
    assert "\N{NO-BREAK SPACE}" not in said, "what is copied can be run"
    wanted = {"start": "web1 is running: 1 process", "stop": "web1 is stopped", "refused": "2 problems were found",
              "held": "web1 is held: ", "look": "running", "plan": "start web1:", "plugins": "BAND"}  # fmt: skip
    assert wanted[name] in said
    assert set(re.findall(r'class="(\w+)"', screen)) >= {"b", "green"}


def _said(screen: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", screen))


def test_pictures_take_their_colours_from_the_page_and_nothing_from_elsewhere(html: Path) -> None:
    """Light and dark are the page's business; a site that is read without a network shows all of it."""
    for file in html.rglob("*.html"):
        for picture in re.findall(
            r'<svg class="(?:chart|diagram)".*?</svg>', file.read_text(), flags=re.DOTALL
        ):
            assert not re.findall(r"(?<!&)#[0-9a-f]{3,6}\b|(?:fill|stroke)=", picture)
            assert not re.findall(r"(?:href|src)=", picture)
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*src="([^"]*)|<link rel="stylesheet"[^>]*href="([^"]*)',
            file.read_text(),
        )
        assert not [url for url in map("".join, loaded) if "//" in url]
    style = (DOCS / "_static/site.css").read_text()
    used = {
        name for name in re.findall(r"var\((--(?:screen|red|green|yellow|cyan)[a-z-]*)\)", style)
    }
    for block in (
        r"body \{",
        r'body\[data-theme="dark"\] \{',
        r'body:not\(\[data-theme="light"\]\) \{',
    ):
        said = re.search(rf"{block}(.*?)\}}", style, flags=re.DOTALL)
        assert said is not None
        assert used == set(re.findall(r"--[a-z-]+(?=:)", said[1])), (
            "light and dark say the same colours"
        )


def test_every_page_can_be_reached_and_found(html: Path) -> None:
    """By the captioned contents at the side of each page, and by the search."""
    index = (html / "searchindex.js").read_text()
    sides = {
        built(html, page): page
        for page in PAGES
        if page.parent.parent == DOCS and page.name not in INCLUDED
    }
    assert all(f'"{page.parent.name}/{page.stem}"' in index for page in sides.values())
    for file in [*sides, html / "index.html"]:
        text = file.read_text()
        captions = re.findall(
            r'<p class="caption"[^>]*><span class="caption-text">([^<]*)</span>', text
        )
        assert captions == ["Tutorial", "How-to", "Reference", "Explanation"]
        assert 'role="search"' in text
        assert all(
            f'{page.stem}.html"' in text or page.stem == file.stem for page in sides.values()
        )


def test_the_picture_in_the_readme_is_of_the_demo_as_it_is(machine: None) -> None:
    """Numbers, times and what the interpreter's place brings with it apart."""

    def skeleton(lines: list[str]) -> set[str]:
        plain = (re.sub(r"[\d.,:TZ+-]*\d[\d.,:TZ+-]*", "#", line) for line in lines)
        return {
            re.sub(r"\s+", " ", line).strip()
            for line in plain
            if not re.search(r"/usr|My / holds|e2fsck|cgroup ", line)
        }

    drawn = re.sub(
        r"<style>.*?</style>|<[^>]*>", "", (DOCS / "demo.svg").read_text(), flags=re.DOTALL
    )
    said = re.sub(
        r"<[^>]*>",
        "",
        re.sub(
            r"<style>.*?</style>",
            "",
            screens.picture(screens.demo(), "chrootfw demo"),
            flags=re.DOTALL,
        ),
    )
    missing = skeleton(unescape(drawn).splitlines()) - skeleton(unescape(said).splitlines())
    assert not missing, "python docs/screens.py demo draws it anew"


@pytest.mark.parametrize(
    "page",
    [*PAGES, *DECISIONS, DOCS / "decisions/index.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda page: page.name,
)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links between pages are Sphinx's to check; here are those to files, and those of the README."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not missing
