"""Carry out the stage pre-start: call the plugins' checks, and apply their Steps in the root."""

from __future__ import annotations

from chrootfw.errors import PluginError, PreStartError
from chrootfw.lifecycle import steps
from chrootfw.lifecycle.context import Job
from chrootfw.lifecycle.root_check import (
    check_root_answers,
    damaged_root_error,
    silent_root_error,
)
from chrootfw.linux.root import Root
from chrootfw.model import Command, NoCommand, Problem, Step


def pre_start(job: Job, command: Command | NoCommand, root: Root) -> None:
    """Call the plugins' checks of a start, and apply the Steps that they answer with.

    Args:
        job: The instance, whose root is mounted.
        command: The answer of the hook `chrootfw_init_script`.
        root: Its root, which the plugins read.

    Raises:
        PreStartError: A check found a problem that is more than a warning.
        StepError: The root does not answer, or a Step could not be applied.
        PluginError: A plugin failed, or its answer is not valid.
    """
    with job.step("pre-start", "check the root"):
        problems, wanted = check_root(job, command, root)
    for problem in problems:
        job.warn("pre-start", problem.brief + (f" ({problem.hint})" if problem.hint else ""))
    for plugin, step in wanted:
        job.cancellation.check()
        steps.apply_step(job, "pre-start", plugin, step)


def check_root(
    job: Job, command: Command | NoCommand, root: Root
) -> tuple[list[Problem], list[tuple[str, Step]]]:
    """Call the plugins' checks of a start, and apply nothing.

    Args:
        job: The instance, whose root is mounted.
        command: The answer of the hook `chrootfw_init_script`.
        root: Its root, which the plugins read.

    Returns:
        The warnings; the Steps with their plugins.

    Raises:
        PreStartError: A check found a problem that is more than a warning.
        StepError: The root does not answer, or is damaged.
        PluginError: A plugin failed, or its answer is not valid.
    """
    check_root_answers(job)
    try:
        answers = job.stages.pre_start(job.instance, root, command)
    except PluginError as error:
        if root.timed_out is not None:
            raise silent_root_error(job, root.timed_out) from error
        if root.damage is not None:
            raise damaged_root_error(job, root.damage) from error
        raise
    problems = [problem for _, problem in answers if isinstance(problem, Problem)]
    fatal = [problem for problem in problems if not problem.warning]
    if fatal:
        if root.damage is not None:  # then what a check did not find may be there
            raise damaged_root_error(job, root.damage)
        first = fatal[0]
        if len(fatal) == 1:
            raise PreStartError(f"cannot start {job.name}: {first.brief}", hint=first.hint)
        lines = [f"{p.brief}{f' (hint: {p.hint})' if p.hint else ''}" for p in fatal]
        raise PreStartError(f"cannot start {job.name}: {len(fatal)} problems were found", lines)
    wanted = [(plugin, answer) for plugin, answer in answers if isinstance(answer, Step)]
    for plugin, step in wanted:
        steps.step_as_data(job, "pre-start", plugin, step)  # refuse one before any is applied
    return problems, wanted
