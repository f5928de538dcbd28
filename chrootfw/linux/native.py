"""Decide whether the compiled module `_native` is used.

CHROOTFW_NATIVE=0 never uses it, =1 requires it. If the variable is not set, it is used if it can be
imported. Without it, children are forks of a program with one thread, or start from an interpreter
of their own (`interpreter`).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

#: The version of `_native.c` that this Python code fits.
VERSION = 3


def _load(wanted: str) -> tuple[ModuleType | None, str]:
    """Import the module.

    Args:
        wanted: The value of CHROOTFW_NATIVE.

    Returns:
        The module, or `None` and why it is not used.

    Raises:
        ImportError: It is required, and cannot be used.
    """
    if wanted == "0":
        return None, "CHROOTFW_NATIVE=0"
    try:
        from chrootfw.linux import _native
    except ImportError as error:
        is_built = not isinstance(error, ModuleNotFoundError) and os.path.exists(
            f"{os.path.dirname(__file__)}/_native.abi3.so"
        )
        reason = str(error) if is_built else "it was not built: no compiler at the installation"
    else:
        if _native.VERSION == VERSION:
            return _native, ""
        reason = (
            f"{_native.__file__} has version {_native.VERSION}, not {VERSION}: install chrootfw "
            "again"
        )
    if wanted == "1":
        raise ImportError(f"CHROOTFW_NATIVE=1, but chrootfw.linux._native is not used: {reason}")
    return None, reason


#: The module, or `None` and the reason.
MODULE, REASON = _load(os.environ.get("CHROOTFW_NATIVE", ""))
