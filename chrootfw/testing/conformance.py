"""Does a plugin keep the rules of its hooks? A class of tests for pytest, and a function that lists everything it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from chrootfw.model import Instance
from chrootfw.testing.examination import LOOKS, SECONDS, Examination


def check(
    plugin: object, instances: Sequence[Instance] = (), *, seconds: float = SECONDS, apply_steps: bool = False
) -> list[str]:
    """Everything that is wrong with a plugin, a sentence each; empty when it keeps all the rules.

    ``plugin``: an object, class or module. ``instances``: what it is asked about besides two plain ones, for a plugin that is
    silent unless a parameter is set. ``seconds``: within which each hook must answer. ``apply_steps``: apply its Steps and undo them,
    which touches the system.
    """
    with Examination(plugin, instances, seconds=seconds, apply_steps=apply_steps) as exam:
        return list(dict.fromkeys(line for look in LOOKS.values() for line in look(exam)))


class Conformance:
    """Tests that a plugin keeps the rules of its hooks: ``class TestMine(Conformance): plugin = Mine``.

    ``plugin``, ``instances``, ``seconds``, ``apply_steps``: as for ``check``.
    """

    plugin: Any
    instances: Sequence[Instance] = ()
    seconds: float = SECONDS
    apply_steps: bool = False

    _examination: ClassVar[Examination | None] = None

    @classmethod
    def setup_class(cls) -> None:
        """Called by pytest before the tests."""
        cls._examination = Examination(
            cls.plugin, cls.instances, seconds=cls.seconds, apply_steps=cls.apply_steps
        ).__enter__()

    @classmethod
    def teardown_class(cls) -> None:
        """Called by pytest after the tests."""
        if cls._examination is not None:
            cls._examination.__exit__()
            cls._examination = None

    def _look(self, name: str) -> None:
        __tracebackhide__ = True
        assert self._examination is not None
        findings = LOOKS[name](self._examination)
        if findings:
            raise AssertionError("\n".join(findings))

    def test_it_can_be_loaded(self) -> None:
        """Its hooks exist, are marked, are no coroutines, and wrap where they must."""
        __tracebackhide__ = True
        self._look("loading")

    def test_its_answers_have_the_right_types(self) -> None:
        """No exception, and nothing that the core refuses."""
        __tracebackhide__ = True
        self._look("answers")

    def test_its_wrappers_pass_on_what_they_wrap(self) -> None:
        """``return (yield)`` once, and errors go through."""
        __tracebackhide__ = True
        self._look("wrappers")

    def test_it_answers_without_waiting(self) -> None:
        """Within ``seconds``, and without asking anybody on standard input."""
        __tracebackhide__ = True
        self._look("blocking")

    def test_it_answers_the_same_twice(self) -> None:
        """And changes nothing that it is given."""
        __tracebackhide__ = True
        self._look("repetition")

    def test_its_steps_can_be_undone_by_another_process(self) -> None:
        """From their record alone."""
        __tracebackhide__ = True
        self._look("steps")

    def test_its_unmount_orderings_are_legal(self) -> None:
        """For random mount trees, stacked mounts and layers among them."""
        __tracebackhide__ = True
        self._look("unmount_orderings")

    def test_its_kill_strategies_are_legal(self) -> None:
        """For random processes, gently and by force."""
        __tracebackhide__ = True
        self._look("kill_strategies")
