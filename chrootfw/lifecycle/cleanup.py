"""Clean up an instance: unmount and release what an earlier stop or start left."""

from __future__ import annotations

from chrootfw.lifecycle import teardown, unmount
from chrootfw.lifecycle.context import Job
from chrootfw.planning import transitions


def cleanup(job: Job) -> None:
    """Unmount and release an instance that is mounted or held.

    With `job.gives_up`, Steps that cannot be undone are named and given up.

    Raises:
        TransitionError: The instance is running.
        PrivilegeError: The caller may not unmount; nothing was done.
        HeldError: A mount or a disk is in use.
        StepError: A Step could not be undone, or a file not removed.
    """
    state = job.read_state(job.read_snapshot())
    transitions.check("cleanup", job.name, state)
    unmount.check_right(job, "clean up")
    job.note(phase="stopping")
    teardown.unmount_and_release(job)
