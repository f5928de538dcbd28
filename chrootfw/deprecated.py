"""All promises of removal, in one room: which hook or argument goes, since when that is told, and what to use instead.

docs/compatibility.md says how long an entry stays. Plugins that use what is in the table still work; each use is one
warning when the plugin is registered.
"""

from __future__ import annotations

import warnings

import attrs
import pluggy

from chrootfw.values import Value


class ChrootfwDeprecationWarning(DeprecationWarning):
    """A plugin uses a hook, or an argument of a hook, that a later chrootfw will not have."""


@attrs.frozen(eq=False, repr=False)
class Deprecation(Value):
    """``hook``: its full name. ``argument``: one of its arguments; ``""`` for the hook itself. ``since``: the minor version that
    began to warn. ``removed``: the first that may be without it, two minor versions later at least. ``instead``: what to use."""

    hook: str
    argument: str
    since: str
    removed: str
    instead: str

    def describe(self) -> str:
        """``argument force of chrootfw_kill_strategy (deprecated since 0.3, removed in 0.5)``."""
        what = f"argument {self.argument} of {self.hook}" if self.argument else f"hook {self.hook}"
        return f"{what} (deprecated since {self.since}, removed in {self.removed})"


#: Whatever is deprecated now.
DEPRECATED: tuple[Deprecation, ...] = ()


def warn(manager: pluggy.PluginManager, name: str, who: str) -> None:
    """Warn of what the plugin registered as ``name`` uses; ``who`` names it with its distribution and version."""
    for entry in DEPRECATED:
        for implementation in getattr(manager.hook, entry.hook).get_hookimpls():
            arguments = ("", *implementation.argnames, *implementation.kwargnames)
            if implementation.plugin_name == name and entry.argument in arguments:
                warnings.warn(
                    f"{who} uses the {entry.describe()}; use {entry.instead}", ChrootfwDeprecationWarning, stacklevel=3
                )


__all__ = ["DEPRECATED", "ChrootfwDeprecationWarning", "Deprecation", "warn"]
