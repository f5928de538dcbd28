"""All promises of removal: which hook or argument goes, since when, and what to use instead.

docs/explanation/compatibility.md says how long an entry stays. Plugins that use what is in the
table still work; each use is one warning when the plugin is registered.
"""

from __future__ import annotations

import warnings

import attrs
import pluggy


class ChrootfwDeprecationWarning(DeprecationWarning):
    """A plugin uses a hook, or an argument of a hook, that a later chrootfw will not have."""


@attrs.frozen
class Deprecation:
    """Promise a removal.

    Args:
        hook: The hook's full name.
        argument: One of its arguments; ``""`` for the hook itself.
        since: The minor version that began to warn.
        removed: The first minor version that may be without it, at least two later.
        instead: What to use.
    """

    hook: str
    argument: str
    since: str
    removed: str
    instead: str

    def describe(self) -> str:
        """Return one line for a warning.

        Such as ``argument force of chrootfw_kill_strategy (deprecated since 0.3, removed in 0.5)``.
        """
        what = f"argument {self.argument} of {self.hook}" if self.argument else f"hook {self.hook}"
        return f"{what} (deprecated since {self.since}, removed in {self.removed})"


#: Whatever is deprecated now.
DEPRECATED: tuple[Deprecation, ...] = ()


def warn(manager: pluggy.PluginManager, name: str, who: str) -> None:
    """Warn of what a plugin uses that is deprecated.

    Args:
        manager: The manager that has the plugin.
        name: The name under which the plugin is registered.
        who: The plugin with its distribution and version, for the warning.
    """
    for entry in DEPRECATED:
        for implementation in getattr(manager.hook, entry.hook).get_hookimpls():
            arguments = ("", *implementation.argnames, *implementation.kwargnames)
            if implementation.plugin_name == name and entry.argument in arguments:
                warnings.warn(
                    f"{who} uses the {entry.describe()}; use {entry.instead}",
                    ChrootfwDeprecationWarning,
                    stacklevel=3,
                )


__all__ = ["DEPRECATED", "ChrootfwDeprecationWarning", "Deprecation", "warn"]
