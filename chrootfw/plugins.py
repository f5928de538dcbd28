"""Which plugins there are: registration, discovery, and a name to blame.

No manager at module level: each ``Runtime`` has its own. The defaults are known here as names of modules and
are otherwise plugins like any other.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import pluggy

from chrootfw import deprecated, hookspecs, installed
from chrootfw.errors import PluginError, PluginLoadError, nearest
from chrootfw.hook_calls import where
from chrootfw.values import Value

#: The attribute that ``chrootfw.hookimpl`` gives a function.
_MARK = f"{hookspecs.hookimpl.project_name}_impl"

#: The described behaviour, one module a stage; asked last.
DEFAULTS = (
    "chrootfw_defaults.disk",
    "chrootfw_defaults.api_filesystems",
    "chrootfw_defaults.binds",
    "chrootfw_defaults.resolver_files",
    "chrootfw_defaults.pre_start_checks",
    "chrootfw_defaults.init_script",
    "chrootfw_defaults.enter_by_chroot",
    "chrootfw_defaults.term_then_kill",
    "chrootfw_defaults.deepest_first",
)

#: Entry points of plugins for all instances, and of plugins for instances that name them in ``plugins``.
GROUP = "chrootfw"
INSTANCE_GROUP = "chrootfw.instance"


@attrs.frozen(eq=False, repr=False)
class PluginRecord(Value):
    """A plugin as people know it. ``band``: ``default``, ``first-party``, ``installed``, ``instance`` or ``object``."""

    name: str
    band: str
    distribution: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it comes with chrootfw."""
        return self.band in ("default", "first-party")

    def describe(self) -> str:
        """``plugin snapshots (chrootfw-snapshots 1.2)``."""
        origin = " ".join(filter(None, (self.distribution, self.version)))
        return f"plugin {self.name}" + (f" ({origin})" if origin else "")


class _Manager(pluggy.PluginManager):
    """pluggy's, which looks at every attribute of a plugin (inspect.getattr_static): those of all objects are left out, and
    what a module has imported; and chrootfw's checks and the registration look at them once for both."""

    _looked_at: tuple[object, dict[str, Any]] = (None, {})

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """The options of a hook's implementation, ``None`` for what is none."""
        if name.startswith("__"):
            return None
        if plugin is not self._looked_at[0]:
            self._looked_at = (plugin, {})
        found = self._looked_at[1]
        if name not in found:
            found[name] = self._parsed(plugin, name)
        return found[name]

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """As pluggy's; nothing is remembered of the plugin afterwards."""
        try:
            return super().register(plugin, name)
        finally:
            self._looked_at = (None, {})

    def _parsed(self, plugin: object, name: str) -> Any:
        if isinstance(plugin, ModuleType):
            value = vars(plugin).get(name)
            if isinstance(value, FunctionType):
                if _MARK not in vars(value):
                    return None
            elif not isinstance(value, staticmethod | classmethod | MethodType):
                return None
        return super().parse_hookimpl_opts(plugin, name)


class Registry:
    """The plugins of one runtime. ``failures`` are those that could not be loaded (``PluginLoadError``), ``left_out`` the
    records of those that ``without`` names; ``known_failures`` are failures from before."""

    def __init__(
        self,
        objects: Sequence[object] = (),
        *,
        defaults: bool = True,
        discover: bool = False,
        without: Iterable[str] = (),
        named: Iterable[str] = (),
        takes_named: bool = True,
        known_failures: Iterable[PluginLoadError] = (),
    ) -> None:
        self.objects = tuple(objects)
        self.defaults = defaults
        self.discover = discover
        self.without = frozenset(without)
        self.takes_named = takes_named
        self.known_failures = tuple(known_failures)
        self.failures = list(self.known_failures)
        self.left_out: list[PluginRecord] = []
        self.records: dict[str, PluginRecord] = {}
        self.manager = _Manager("chrootfw")
        self.manager.add_hookspecs(hookspecs)
        if defaults:
            from chrootfw import __version__

            for name in DEFAULTS:
                self._load(
                    PluginRecord(name, "default", "chrootfw", __version__), partial(importlib.import_module, name)
                )
        if discover:
            for record, load in entry_points(GROUP):
                self._load(record, load)
        self._load_named(tuple(named))
        for plugin in self.objects:
            self._register(plugin, PluginRecord(_object_name(plugin), "object", *_origin(plugin)))

    def for_instance(self, names: Sequence[str]) -> Registry:
        """This registry with the plugins that one instance asks for by name (or ``module:attribute``)."""
        if not names or not self.takes_named:
            return self
        return Registry(
            self.objects,
            defaults=self.defaults,
            discover=self.discover,
            without=self.without,
            named=names,
            known_failures=self.known_failures,
        )

    def _load_named(self, names: Sequence[str]) -> None:
        offered = {record.name: (record, load) for record, load in entry_points(INSTANCE_GROUP)} if names else {}
        for name in names:
            if name in self.records:
                continue
            if name in self.without:
                self.left_out.append(offered[name][0] if name in offered else PluginRecord(name, "instance"))
                continue
            if name in offered:
                self._load(*offered[name])
            elif ":" in name:
                self._load(PluginRecord(name, "instance"), partial(installed.load, name))
            else:
                near = nearest(name, [*offered, *self.records])
                self.failures.append(
                    PluginLoadError(
                        f"there is no plugin {name!r}" + (f"; did you mean {near!r}?" if near else ""),
                        hint=f"install it (entry point group {INSTANCE_GROUP}), or write module:attribute",
                        plugin=name,
                    )
                )

    def check_loaded(self) -> None:
        """Raise the first ``PluginLoadError``, the others in its details."""
        if self.failures:
            first, *others = self.failures
            raise PluginLoadError(
                first.brief,
                [*first.details, *(o.brief for o in others)],
                first.hint,
                plugin=first.plugin,
                hook=first.hook,
            )

    def record(self, plugin_name: str) -> PluginRecord:
        """The record of a registered plugin, by its name."""
        return self.records.get(plugin_name) or PluginRecord(plugin_name, "object")

    def _load(self, record: PluginRecord, load: Any) -> None:
        """Load one plugin alone: one that fails keeps no other away."""
        if record.name in self.without:
            self.left_out.append(record)
            return
        try:
            self._register(load(), record)
        except PluginLoadError as error:
            self.failures.append(error)
        except (Exception, SystemExit) as error:  # whatever an import may raise
            self.failures.append(
                PluginLoadError(
                    f"{record.describe()} cannot be loaded: {type(error).__name__}: {error}",
                    where(error),
                    _remedy(record, error),
                    plugin=record.name,
                )
            )

    def _register(self, plugin: object, record: PluginRecord) -> None:
        if record.name in self.without:
            self.left_out.append(record)
            return
        if inspect.isclass(plugin):
            try:
                plugin = plugin()
            except Exception as error:
                raise PluginLoadError(
                    f"{record.describe()} cannot be made: {type(error).__name__}: {error}",
                    where(error),
                    hint="pass an object, or a class that needs no arguments",
                    plugin=record.name,
                ) from error
        name, number = record.name, 2
        while name in self.records and record.band == "object":
            name, number = f"{record.name}-{number}", number + 1
        record = attrs.evolve(record, name=name)
        hooks = tuple(self._checked_hooks(plugin, record))
        if not hooks and record.band == "instance":
            raise PluginLoadError(
                f"{record.describe()} implements no hook",
                hint="name a module, a class or an object with hooks",
                plugin=name,
            )
        try:
            self.manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            text = str(error).splitlines()
            raise PluginLoadError(
                f"{record.describe()} cannot be registered: {text[0]}",
                [t.strip() for t in text[1:] if t.strip()],
                "the reference of hooks lists the arguments of each",
                plugin=name,
            ) from error
        self.records[name] = attrs.evolve(record, hooks=hooks)
        deprecated.warn(self.manager, name, record.describe())

    def _checked_hooks(self, plugin: object, record: PluginRecord) -> Iterator[str]:
        """The names of its hooks; refuses unknown names, coroutines, and *surround* hooks that do not wrap."""
        for attribute in dir(plugin):
            options = self.manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                unmarked = attribute.startswith("chrootfw_") and inspect.isroutine(getattr(plugin, attribute))
                if unmarked and not isinstance(plugin, ModuleType):
                    raise PluginLoadError(
                        f"{record.describe()} has {attribute} without the mark of a hook",
                        hint="decorate it with @chrootfw.hookimpl",
                        plugin=record.name,
                        hook=attribute,
                    )
                continue
            hook = options.get("specname") or attribute
            function = getattr(plugin, attribute)
            if hook not in hookspecs.KINDS:
                near = nearest(hook, hookspecs.KINDS)
                raise PluginLoadError(
                    f"{record.describe()} implements {hook}, which is no hook of chrootfw"
                    + (f"; did you mean {near}?" if near else ""),
                    hint="the hooks are chrootfw_"
                    + ", ".join(name.removeprefix("chrootfw_") for name in hookspecs.KINDS),
                    plugin=record.name,
                    hook=hook,
                )
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                raise PluginLoadError(
                    f"{record.describe()}: {hook} is a coroutine; hooks are plain functions",
                    plugin=record.name,
                    hook=hook,
                )
            if options.get("hookwrapper"):
                raise PluginLoadError(
                    f"{record.describe()}: {hook} is an old-style wrapper, which can skip its own teardown",
                    hint="use hookimpl(wrapper=True) and return (yield)",
                    plugin=record.name,
                    hook=hook,
                )
            if hookspecs.KINDS[hook] == "surround" and not options.get("wrapper"):
                raise PluginLoadError(
                    f"{record.describe()}: {hook} surrounds a stage and must be a wrapper",
                    hint="use hookimpl(wrapper=True) and return (yield)",
                    plugin=record.name,
                    hook=hook,
                )
            if hookspecs.KINDS[hook] in ("contribute", "observe") and options.get("wrapper"):
                raise PluginLoadError(
                    f"{record.describe()}: {hook} cannot be wrapped; all its implementations are asked alike",
                    hint="answer with values of your own: of two for one place the one asked first wins",
                    plugin=record.name,
                    hook=hook,
                )
            yield hook


def entry_points(group: str) -> list[tuple[PluginRecord, Any]]:
    """The installed plugins of an entry-point group, chrootfw's own first, sorted by name: ``(record, load)``."""
    found: dict[str, tuple[PluginRecord, Any]] = {}
    for point in installed.entry_points(group):
        ours = "first-party" if point.distribution == "chrootfw" else "installed"
        record = PluginRecord(point.name, ours if group == GROUP else "instance", point.distribution, point.version)
        found.setdefault(point.name, (record, point.load))
    return [found[name] for name in sorted(found, key=lambda name: (found[name][0].band != "first-party", name))]


def _remedy(record: PluginRecord, error: BaseException) -> str:
    """What to do about a plugin that cannot be loaded: a ``module:attribute`` is most often just not found."""
    module, _, attribute = record.name.partition(":")
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if attribute and missing and f"{module}.".startswith(f"{missing}."):
        return f"install it, or name its directory in PYTHONPATH, which sudo does not pass on; --without {record.name} leaves it out"
    return f"repair or remove it, or use --without {record.name}"


def _object_name(plugin: object) -> str:
    if isinstance(plugin, ModuleType):
        return plugin.__name__
    return (plugin if inspect.isclass(plugin) else type(plugin)).__qualname__


def _origin(plugin: object) -> tuple[str, str]:
    """The distribution and version of a plugin object are its module's, where that says them."""
    module = (
        plugin
        if isinstance(plugin, ModuleType)
        else inspect.getmodule(plugin if inspect.isclass(plugin) else type(plugin))
    )
    return (module.__name__ if module else "", str(getattr(module, "__version__", "")))


__all__ = ["DEFAULTS", "GROUP", "INSTANCE_GROUP", "PluginError", "PluginRecord", "Registry", "entry_points"]
