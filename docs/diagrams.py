"""The diagrams of the pages: text for graphviz's ``dot``, and its SVG, which takes its colours from the page.

What is drawn is compared with the code: a diagram that says something else fails the build.
"""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Callable, Mapping

from chrootfw import model
from chrootfw.hooks import specs
from chrootfw.planning import transitions


def draw(name: str) -> str:
    """A diagram as SVG. Raises ``RuntimeError`` where graphviz is missing."""
    make, label = _DIAGRAMS[name]
    return _svg(make(), label)


def _svg(dot: str, label: str) -> str:
    """What ``dot`` makes, without the colours and fonts that it writes: classes and docs/_static/site.css say them."""
    try:
        done = subprocess.run(
            ["dot", "-Tsvg"], input=dot, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            "the diagrams are drawn by graphviz: apt-get install graphviz"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"dot does not understand a diagram of docs/diagrams.py: {error.stderr}"
        ) from error
    svg = done.stdout[done.stdout.index("<svg") :]
    svg = re.sub(
        r"<!--.*?-->\n?|<title>.*?</title>\n?|<polygon fill=\"white\" stroke=\"none\"[^>]*/>\n?",
        "",
        svg,
        flags=re.DOTALL,
    )
    svg = re.sub(r' (fill|stroke|font-family)="[^"]*"', "", svg)
    svg = re.sub(r'points="([^"]*)"/>\n<text text-anchor="start" x="[^"]*"', _centred, svg)
    size = re.search(r'width="(\d+)pt" height="(\d+)pt"', svg)
    assert size is not None
    head = f'<svg class="diagram" role="img" aria-label="{html.escape(label)}" width="{int(size[1]) * 4 // 3}"'
    return re.sub(r'<svg width="[^"]*" height="[^"]*"', head, svg, count=1).strip()


def _centred(cell: re.Match[str]) -> str:
    """The text of a table's cell in its middle, however wide the reader's font is."""
    across = [float(point.partition(",")[0]) for point in cell[1].split()]
    return f'points="{cell[1]}"/>\n<text text-anchor="middle" x="{(min(across) + max(across)) / 2:.2f}"'


#: A new line in a label.
_NEW_LINE = "\\n"

_GRAPH = """
    graph [bgcolor="transparent" fontname="Helvetica" pad=0.1 nodesep=0.35 ranksep=0.55]
    node [fontname="Helvetica" fontsize=11 shape=box style=rounded margin="0.14,0.07"]
    edge [fontname="Helvetica" fontsize=10 arrowsize=0.7]
"""

# -- the states -----------------------------------------------------------------------------------------

#: Verb, state before, state after, and what is said of it. Where a verb can lead to several states, each has a line.
_MOVES = (
    ("start", "absent", "running", "start"),
    ("start", "absent", "mounted", "start,\\nno process left"),
    ("start", "mounted", "running", "start"),
    ("stop", "running", "absent", "stop"),
    ("stop", "running", "mounted", "stop\\n--keep-mounted"),
    ("stop", "running", "held", "stop,\\nnot proven"),
    ("stop", "mounted", "absent", "stop, cleanup"),
    ("cleanup", "mounted", "absent", ""),
    ("stop", "mounted", "held", "not proven"),
    ("stop", "held", "held", "still\\nnot proven"),
    ("stop", "held", "absent", "cleanup, stop"),
    ("cleanup", "held", "absent", ""),
    ("reboot", "running", "running", "reboot"),
    ("reboot", "mounted", "running", ""),
)


def _states() -> str:
    drawn = {(verb, before) for verb, before, _after, _said in _MOVES}
    legal = {(verb, state.value) for verb, states in transitions._LEGAL.items() for state in states}
    legal -= {("enter", "mounted"), ("enter", "running"), ("stop", "absent"), ("cleanup", "absent")}
    assert drawn == legal, (
        f"docs/diagrams.py draws other moves between states than are legal: {drawn ^ legal}"
    )
    edges = []
    for _verb, before, after, said in _MOVES:
        if said:
            more = " class=bad" if after == "held" else ""
            label = f"{said}, reboot" if (before, after) == ("mounted", "running") else said
            edges.append(f'{before} -> {after} [label="  {label}  "{more}]')
    return f"""digraph {{ {_GRAPH}
        absent [class="state absent"] mounted [class="state mounted"] running [class="state running"] held [class="state held"]
        {{rank=same; absent}} {{rank=same; mounted held}} ranksep=0.7 nodesep=0.6
        {"; ".join(edges)}
    }}"""


# -- the stages -----------------------------------------------------------------------------------------

#: The hooks that are asked at each stage.
_ASKED: Mapping[str, tuple[str, ...]] = {
    "mount": ("mount",),
    "pre-start": ("pre_start",),
    "init-start": ("init_script", "enter"),
    "init-stop": ("init_script",),
    "kill": ("kill_strategy",),
    "unmount": ("unmount_ordering",),
}


def _stages() -> str:
    assert tuple(_ASKED) == model.STAGES
    asked = {f"chrootfw_{hook}" for hooks in _ASKED.values() for hook in hooks}
    others = {
        "chrootfw_parameters",
        "chrootfw_around_stage",
        "chrootfw_event",
    }  # before, around, and at every stage
    assert asked | others == set(specs.KINDS), (
        "docs/diagrams.py: a hook is missing in the diagram of the stages"
    )
    nodes = [
        f'"{stage}" [class=stage label="{_NEW_LINE.join((stage, *hooks))}"]'
        for stage, hooks in _ASKED.items()
    ]
    return f"""digraph {{ rankdir=LR {_GRAPH}
        ranksep=0.4
        absent [class="state absent"] running [class="state running"]
        {"; ".join(nodes)}
        {{rank=same; mount; unmount}} {{rank=same; "pre-start"; kill}} {{rank=same; "init-start"; "init-stop"}}
        absent -> mount -> "pre-start" -> "init-start" -> running
        absent -> unmount -> kill -> "init-stop" -> running [dir=back]
        mount -> unmount [style=dashed class=undo]
        "pre-start" -> unmount [style=dashed class=undo constraint=false]
        "init-start" -> kill [style=dashed class=undo constraint=false label="fails: undone"]
    }}"""


_DIAGRAMS: Mapping[str, tuple[Callable[[], str], str]] = {
    "states": (_states, "The states of an instance, and the verbs that lead from one to another"),
    "stages": (
        _stages,
        "The stages of a start and of a stop with their hooks, and how a failing start is undone",
    ),
}
