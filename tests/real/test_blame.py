"""Whatever a plugin does wrong: it is named, with what was expected; nothing is damaged, and all else still works.

A row is a plugin, installed as a distribution of its own. What is said of it is in ``blame_messages.txt``, for people to
read; with ``CHROOTFW_WRITE_MESSAGES=1`` in the environment that file is written anew.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import driving
import pytest
import roots

import chrootfw

MESSAGES = Path(__file__).parent / "blame_messages.txt"

_BEGIN = """
import signal
import time
from chrootfw import *

@hookimpl
"""


def _hook(name: str, *lines: str, arguments: str = "") -> str:
    return f"{_BEGIN}def chrootfw_{name}({arguments}):\n" + "".join(
        f"    {line}\n" for line in lines
    )


def _step(*lines: str, fields: str = "", hook: str = "pre_start", answer: str = "[Takes()]") -> str:
    """A plugin whose Step has the methods given by ``lines``."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"""
import attrs
import time
from chrootfw import *

@attrs.frozen
class Takes(Step):
    kind = "takes"
    deadline = 0.3
{fields}
    def describe(self):
        return "take it"

    def undo(self, record):
        pass

{body}
@hookimpl
def chrootfw_{hook}():
    return {answer}
"""


#: Long for the time limit of these tests, short for the thread that is left behind in it. What
#: never ends is in test_stuck_plugins.py.
_LOOP = ("ends = time.monotonic() + 3", "while time.monotonic() < ends:", "    pass")
_SLEEP = ("time.sleep(3600)",)

#: What the plugin is, in words, and its module.
ROWS = {
    # loading
    "it cannot be imported": "import nothing_of_this_name\n",
    "it is no Python": "def chrootfw_mount(:\n",
    "it exits when it is imported": "raise SystemExit(3)\n",
    "a misspelt hook": _hook("kill_stratagy", "return None"),
    "an argument that the hook has not": _hook("mount", "return None", arguments="instance, disk"),
    "an async def": _hook("mount", "return None").replace("def ", "async def "),
    "a surround hook that does not wrap": _hook("around_stage", "return None"),
    # wrong types
    "parameters: a dict": _hook("parameters", "return {'size': 1}"),
    "mount: no list": _hook("mount", "return MountPoint('/mnt', 'tmpfs', 'tmpfs')"),
    "mount: a list of words": _hook("mount", "return ['/dev/sda1']"),
    "pre_start: a word": _hook("pre_start", "return 'no space'"),
    "init_script: a list": _hook("init_script", "return ['/sbin/init']"),
    "enter: a word": _hook("enter", "return 'chroot'"),
    "kill_strategy: no list": _hook("kill_strategy", "return Escalation(15, 1)"),
    "kill_strategy: nothing in it": _hook("kill_strategy", "return []"),
    "unmount_ordering: a word": _hook("unmount_ordering", "return 'deepest first'"),
    "mount: a coroutine": _hook("mount", "async def later(): pass", "return later()"),
    # exceptions
    "parameters raises": _hook("parameters", "return 1 / 0"),
    "mount raises": _hook("mount", "raise OSError(5, 'Input/output error')"),
    "pre_start raises": _hook("pre_start", "return {}['x']"),
    "init_script raises": _hook("init_script", "raise RuntimeError('no script today')"),
    "enter raises": _hook("enter", "raise SystemExit(3)"),
    "kill_strategy raises": _hook("kill_strategy", "return 1 / 0"),
    "unmount_ordering raises": _hook("unmount_ordering", "return 1 / 0"),
    "an observer raises": _hook("event", "1 / 0"),
    # loops
    "parameters loops": _hook("parameters", *_LOOP),
    "mount loops": _hook("mount", *_LOOP),
    "mount sleeps": _hook("mount", *_SLEEP),
    "pre_start loops": _hook("pre_start", *_LOOP),
    "init_script loops": _hook("init_script", *_LOOP),
    "kill_strategy loops": _hook("kill_strategy", *_LOOP),
    "unmount_ordering loops": _hook("unmount_ordering", *_LOOP),
    "an observer loops": _hook("event", *_LOOP),
    "around_stage loops": _hook("around_stage", *_LOOP, "yield").replace("@hookimpl", "@hookimpl(wrapper=True)"),
    # unmount orders
    "an order that drops a mount": _hook(
        "unmount_ordering", "return [m for m in reversed(mounts) if m.target != '/dev/shm']", arguments="mounts"
    ),
    "an order that invents a mount": _hook(
        "unmount_ordering",
        "made = Mount('/home', 'tmpfs', 'tmpfs', (), 'root', 1, 1)",
        "return [made, *reversed(mounts)]",
        arguments="mounts",
    ),
    "an order that names a mount twice": _hook(
        "unmount_ordering",
        "return [m for m in reversed(mounts) for _ in range(1 + (m.target == '/proc'))]",
        arguments="mounts",
    ),
    "an order with a parent first": _hook("unmount_ordering", "return mounts", arguments="mounts"),
    # signals
    "a signal to pid 1": _hook("kill_strategy", "return [Escalation(15, 1, to=[1])]"),
    "a signal to a process that it was not given": _hook(
        "kill_strategy", "import os", "return [Escalation(15, 1, to=[os.getpid()])]"
    ),
    "no such signal": _hook("kill_strategy", "return [Escalation(999, 1)]"),
    "a grace of days": _hook("kill_strategy", "return [Escalation(15, 1e9)]"),
    # mounts
    "a mount above the root": _hook("mount", "return [MountPoint('/../etc', 'tmpfs', 'tmpfs')]"),
    "a mount on a relative path": _hook("mount", "return [MountPoint('etc', 'tmpfs', 'tmpfs')]"),
    "a layer above the layers": _hook("mount", "return [MountPoint('/', '/etc', at='aux:../../etc')]"),
    "no root": _hook("mount", "return [Omit('/')]"),
    "a mount in a layer that is not there": _hook("mount", "return [MountPoint('/x', '/etc', at='aux:x')]"),
    # wrappers
    "a wrapper forgets the answer": _hook("init_script", "yield").replace("@hookimpl", "@hookimpl(wrapper=True)"),
    "a wrapper that does not yield": _hook("kill_strategy", "if False: yield").replace(
        "@hookimpl", "@hookimpl(wrapper=True)"
    ),
    "around_stage raises before": _hook("around_stage", "1 / 0", "yield").replace(
        "@hookimpl", "@hookimpl(wrapper=True)"
    ),
    "around_stage raises after": _hook("around_stage", "yield", "1 / 0").replace(
        "@hookimpl", "@hookimpl(wrapper=True)"
    ),
    # parameters
    "a parameter of chrootfw's own": _hook("parameters", "return [Parameter('disk', str)]"),
    "a parameter of another plugin": _hook("parameters", "return [Parameter('grace', int)]"),
    "a parameter with a capital": _hook("parameters", "return [Parameter('Size', int)]"),
    "a default of another type": _hook("parameters", "return [Parameter('size', int, 'big')]"),
    # steps
    "a Step that is no data": _step(fields="    what = object()\n    made: object = what\n"),
    "apply is missing": _step(),
    "apply raises": _step("def apply(self):", "    raise OSError(28, 'No space left on device')"),
    "apply answers what is no JSON": _step("def apply(self):", "    return {'made': object()}"),
    "apply never comes back": _step("def apply(self):", "    time.sleep(3600)"),
    "a source that says no source": _step(
        "def apply(self):", "    return {'path': '/tmp'}", hook="mount", answer="[MountPoint('/mnt', Takes(), 'tmpfs')]"
    ),
}  # fmt: skip


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Install a plugin: a module, and the metadata of its distribution."""
    site = tmp_path / "site"

    def install(source: str) -> Path:
        info = site / "chrootfw_bad-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chrootfw-bad\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[chrootfw]\nbad = bad_plugin\n")
        (site / "bad_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        return site

    yield install
    sys.modules.pop("bad_plugin", None)
    importlib.invalidate_caches()


def _readable(text: str, site: Path) -> str:
    """Without what is different each time."""
    text = text.replace(str(site), "SITE").replace(
        f"(chrootfw {chrootfw.__version__})", "(chrootfw VERSION)"
    )
    text = re.sub(r"pid \d{2,}", "pid PID", text)
    text = re.sub(
        r"mount ID \d+|id=\d+|parent=\d+", lambda found: re.sub(r"\d+", "N", found[0]), text
    )
    text = re.sub(
        r"\[(/[^]]*)\]", lambda found: f"[{', '.join(sorted(found[1].split(', ')))}]", text
    )  # the table's order is the kernel's
    text = re.sub(r"to=\(\d{2,},\)", "to=(PID,)", text)
    # A line of Python's own library: another version has it elsewhere, and in other words.
    text = re.sub(
        rf"^  {re.escape(os.path.dirname(os.__file__))}/(\S+), line \d+, in .*",
        r"  PYTHON/\1",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r" at 0x[0-9a-f]+", " at 0x…", text)


def _snapshots() -> dict[str, str]:
    found = re.findall(
        r"^== (.*)\n((?:(?!== ).*\n)*)", MESSAGES.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {row: text.strip() for row, text in found}


@pytest.mark.parametrize("row", list(ROWS))
def test_what_a_plugin_does_wrong_is_named_and_harms_nobody(
    row: str,
    make_chroot: Callable[..., driving.Chroot],
    cli: driving.Cli,
    runtime: chrootfw.Runtime,
    bad: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    web1 = make_chroot(
        init=roots.script(roots.DAEMON, "true")
    )  # its stop leaves something to be killed
    site = bad(ROWS[row])
    said: list[str] = []

    def told(event: chrootfw.Event) -> None:
        if event.what == "plugin-error":
            said.append(f"stop says: {event.error}")

    with_bad = chrootfw.Runtime(
        discover=True,
        hook_timeout=0.3,
        isolate_plugins=True,
        run_dir=cli.run_dir,
        config_dir=cli.config_dir,
        on_event=told,
    )
    caplog.set_level(logging.WARNING, "chrootfw")
    try:
        with_bad.start("web1")
    except chrootfw.ChrootfwError as error:
        said.insert(0, f"start says: {error}")
        assert web1.is_gone() or row == "apply never comes back", "a start that failed is undone"
    observed = [
        record.getMessage() for record in caplog.records if "chrootfw_event" in record.getMessage()
    ]
    said += [f"the log says: {text}" for text in dict.fromkeys(observed)]

    # Everything else works, with the plugin and without.
    assert [info.name for info in with_bad.list()] == ["web1"]
    assert with_bad.info("web1").name == "web1"
    if with_bad.info("web1").state != "running":
        if row == "apply never comes back":
            with pytest.raises(chrootfw.StepError) as caught:
                with_bad.cleanup(
                    "web1"
                )  # the call goes on in this process: nothing is undone beside it here
            assert any("still being applied" in line for line in caught.value.details)
            web1.cli("cleanup", env={"PYTHONPATH": f"{site}:{cli.environment()['PYTHONPATH']}"})
        else:
            with_bad.cleanup("web1")
        runtime.start("web1")  # as with --no-plugins
    with_bad.stop("web1")
    assert web1.is_gone()
    runtime.start("web1")
    web1.cli(
        "stop", "--no-plugins", env={"PYTHONPATH": f"{site}:{cli.environment()['PYTHONPATH']}"}
    )
    assert web1.is_gone()

    text = "\n".join(_readable(message, site) for message in dict.fromkeys(said))
    assert said, "nobody was blamed"
    for message in said:
        assert "plugin bad (chrootfw-bad 1.2)" in message, message
    if os.environ.get("CHROOTFW_WRITE_MESSAGES"):
        _write(row, text)
    assert text == _snapshots().get(row), f"not as in {MESSAGES.name}"


def _write(row: str, text: str) -> None:
    known = _snapshots() if MESSAGES.exists() else {}
    known[row] = text
    MESSAGES.write_text(
        "What is said of a plugin that does something wrong: one part for each row of test_blame.py.\n\n"
        + "\n".join(f"== {name}\n{known[name]}\n" for name in ROWS if name in known),
        encoding="utf-8",
    )


def test_the_messages_are_those_of_the_rows() -> None:
    assert list(_snapshots()) == list(ROWS)
