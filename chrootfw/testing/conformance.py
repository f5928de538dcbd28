"""Check that a plugin keeps the rules of its hooks.

A class of tests for pytest, and a function that lists every finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from chrootfw.model import Instance
from chrootfw.testing.examination import CHECKS, SECONDS, Examination


def check(
    plugin: object,
    instances: Sequence[Instance] = (),
    *,
    seconds: float = SECONDS,
    apply_steps: bool = False,
) -> list[str]:
    """List everything that is wrong with a plugin.

    Args:
        plugin: An object, class or module.
        instances: Instances for its hooks besides two plain ones, for a plugin that is silent
            unless a parameter is set.
        seconds: The time limit of each hook (float).
        apply_steps: Apply its Steps and undo them, which touches the system.

    Returns:
        A sentence for each finding; none when the plugin keeps all the rules.
    """
    with Examination(plugin, instances, seconds=seconds, apply_steps=apply_steps) as exam:
        return list(dict.fromkeys(line for name in CHECKS for line in exam.run(name)))


class Conformance:
    """Test that a plugin keeps the rules of its hooks.

    Derive from it: ``class TestMine(Conformance): plugin = Mine``.

    Attributes:
        plugin: As for ``check``.
        instances: As for ``check``.
        seconds: As for ``check``.
        apply_steps: As for ``check``.
    """

    plugin: Any = None
    instances: Sequence[Instance] = ()
    seconds: float = SECONDS
    apply_steps: bool = False

    _examination: ClassVar[Examination | None] = None

    @classmethod
    def setup_class(cls) -> None:
        """Prepare; pytest calls this before the tests."""
        cls._examination = Examination(
            cls.plugin, cls.instances, seconds=cls.seconds, apply_steps=cls.apply_steps
        ).__enter__()

    @classmethod
    def teardown_class(cls) -> None:
        """Clean up; pytest calls this after the tests."""
        if cls._examination is not None:
            cls._examination.__exit__()
            cls._examination = None

    def _check(self, name: str) -> None:
        __tracebackhide__ = True
        assert self._examination is not None
        findings = self._examination.run(name)
        if findings:
            raise AssertionError("\n".join(findings))

    def test_it_can_be_loaded(self) -> None:
        """Test that hooks exist, are marked, are not coroutines, and wrap where they must."""
        __tracebackhide__ = True
        self._check("loading")

    def test_its_answers_have_the_right_types(self) -> None:
        """Test that nothing raises, and that the core refuses nothing."""
        __tracebackhide__ = True
        self._check("answers")

    def test_its_wrappers_pass_on_what_they_wrap(self) -> None:
        """Test for one ``return (yield)``, and that errors go through."""
        __tracebackhide__ = True
        self._check("wrappers")

    def test_it_answers_without_waiting(self) -> None:
        """Test that hooks answer within ``seconds``, and do not read standard input."""
        __tracebackhide__ = True
        self._check("blocking")

    def test_it_changes_nothing(self) -> None:
        """Test that hooks do nothing to the system, the process or its environment."""
        __tracebackhide__ = True
        self._check("changes")

    def test_it_answers_the_same_twice(self) -> None:
        """Test that hooks answer the same twice, and change nothing that they are given."""
        __tracebackhide__ = True
        self._check("repetition")

    def test_its_steps_can_be_undone_by_another_process(self) -> None:
        """Test that Steps can be undone from their record alone."""
        __tracebackhide__ = True
        self._check("steps")

    def test_its_unmount_orderings_are_legal(self) -> None:
        """Test random mount trees, stacked mounts and layers among them."""
        __tracebackhide__ = True
        self._check("unmount_orderings")

    def test_its_kill_strategies_are_legal(self) -> None:
        """Test random processes, with and without force, which is not ignored."""
        __tracebackhide__ = True
        self._check("kill_strategies")
