"""Register and discover plugins, and name them in errors.

There is no manager at module level: each ``Runtime`` has its own. The defaults are known here as
names of modules and are otherwise plugins like any other.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import pluggy

from chrootfw.errors import (
    Hint,
    InputError,
    Interrupted,
    PluginError,
    PluginLoadError,
    nearest,
)
from chrootfw.hooks import deprecations, entry_points, specs
from chrootfw.hooks.time_limits import (
    HOOK_TIMEOUT,
    Failure,
    HookTimeout,
    PluginCalls,
    describe_failure,
)

#: The attribute that ``chrootfw.hookimpl`` gives a function.
_MARK = f"{specs.hookimpl.project_name}_impl"

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

#: The package of them all.
_OWN_PACKAGE = "chrootfw_defaults"

#: Entry points of plugins for all instances, and of plugins for instances that name them in
#: ``plugins``.
GROUP = "chrootfw"
INSTANCE_GROUP = "chrootfw.instance"


@attrs.frozen
class PluginRecord:
    """Show a plugin as people know it.

    Args:
        name: The name.
        origin: ``default``, ``first-party``, ``installed``, ``instance`` or ``object``.
        distribution: The distribution that has it.
        version: The version of the distribution.
        hooks: The hooks that it implements.
    """

    name: str
    origin: str
    distribution: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()

    @property
    def is_first_party(self) -> bool:
        """Return whether the plugin comes with chrootfw."""
        return self.origin in ("default", "first-party")

    def describe(self) -> str:
        """Return one line, such as ``plugin snapshots (chrootfw-snapshots 1.2)``."""
        origin = " ".join(filter(None, (self.distribution, self.version)))
        return f"plugin {self.name}" + (f" ({origin})" if origin else "")


class _Functions:
    """Stand for a plugin in pluggy's manager: the functions of its hooks, and nothing else.

    An attribute of a plugin may be any code. Each is read once, where the plugin's code runs, and
    no plugin is compared with another.
    """

    def __init__(self, plugin: object, functions: Mapping[str, Any]) -> None:
        self.plugin = plugin
        vars(self).update(functions)


@attrs.frozen
class _Loaded:
    """A plugin that was imported, made and examined."""

    plugin: object
    module: str
    hooks: tuple[str, ...]
    functions: Mapping[str, Any]
    warning: str


class Registry:
    """Hold the plugins of one runtime.

    Args:
        objects: The program's own plugins.
        defaults: Whether the default plugins are loaded.
        discover: Whether installed plugins are loaded.
        without: Names of plugins to leave out.
        named: Names of plugins that an instance asks for.
        takes_named: Whether instances may ask for plugins.
        known_failures: Failures from before; these plugins are not loaded.
        calls: Calls the plugins' code; ``None``: in the caller's thread.
        timeout: Seconds that the import of a plugin has, and each class to be called (float).
        loaded: Plugins that were loaded before, by name.

    Attributes:
        failures: Plugins that could not be loaded (``PluginLoadError``).
        warnings: Plugins that have no effect, in a sentence each.
        left_out: The records of those that ``without`` names.
        records: The records of the others, by name.
    """

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
        calls: PluginCalls | None = None,
        timeout: float = HOOK_TIMEOUT,
        loaded: Mapping[str, _Loaded] | None = None,
    ) -> None:
        self.objects = check_sequence(objects, "plugins", "plugins")
        self.defaults = defaults
        self.discover = discover
        self.without = frozenset(check_sequence(without, "without", "names of plugins"))
        self.takes_named = takes_named
        self.known_failures = tuple(known_failures)
        self.failures = list(self.known_failures)
        self.warnings: list[str] = []
        self.left_out: list[PluginRecord] = []
        self.records: dict[str, PluginRecord] = {}
        self.calls = calls or PluginCalls()
        self.timeout = timeout
        self._loaded = dict(loaded or {})
        self._modules: dict[str, str] = {}
        self.manager = pluggy.PluginManager("chrootfw")
        self.manager.add_hookspecs(specs)
        if defaults:
            from chrootfw import __version__

            for name in DEFAULTS:
                self._load(
                    PluginRecord(name, "default", "chrootfw", __version__),
                    partial(importlib.import_module, name),
                    name,
                )
                if any(failure.plugin == _OWN_PACKAGE for failure in self.failures):
                    break  # all of them are in it
        if discover:
            found, twice = _find(GROUP)
            for failure in twice:
                if failure.plugin not in self.without:
                    self._add_failure(failure)
            for record, load, module in found:
                self._load(record, load, module)
        self._load_named(tuple(named))
        self._load_objects()

    def for_instance(self, names: Sequence[str], calls: PluginCalls | None = None) -> Registry:
        """Return this registry with the plugins that one instance asks for.

        Args:
            names: Their names, or ``module:attribute``.
            calls: Calls the plugins' code; ``None`` for those of this registry.
        """
        if not names or not self.takes_named:
            return self
        return Registry(
            self.objects,
            defaults=self.defaults,
            discover=self.discover,
            without=self.without,
            named=names,
            known_failures=self.failures,
            calls=calls or self.calls,
            timeout=self.timeout,
            loaded=self._loaded,
        )

    def _load_named(self, names: Sequence[str]) -> None:
        if not names:
            return
        found, twice = _find(INSTANCE_GROUP)
        offered = {record.name: (record, load, module) for record, load, module in found}
        for name in names:
            if name in self.records:
                continue
            if name in self.without:
                self.left_out.append(
                    offered[name][0] if name in offered else PluginRecord(name, "instance")
                )
                continue
            for failure in twice:
                if failure.plugin == name:
                    self._add_failure(failure)
            if name in offered:
                self._load(*offered[name])
            elif ":" in name or "." in name:
                module = name.partition(":")[0]
                self._load(PluginRecord(name, "instance"), partial(entry_points.load, name), module)
            else:
                near = nearest(name, [*offered, *self.records])
                self.failures.append(
                    PluginLoadError(
                        f"there is no plugin {name!r}"
                        + (f"; did you mean {near!r}?" if near else ""),
                        hint=(
                            f"install it (entry point group {INSTANCE_GROUP}), or write "
                            "module:attribute"
                        ),
                        plugin=name,
                    )
                )

    def _load_objects(self) -> None:
        for number, plugin in enumerate(self.objects):
            if any(plugin is other for other in self.objects[:number]):
                record = PluginRecord(_object_name(plugin), "object", *_origin(plugin))
                raise PluginLoadError(
                    f"{record.describe()} is passed twice: the same object",
                    hint="pass it once; two objects of one class are two plugins",
                    plugin=record.name,
                )
            _check_object(plugin)
            record = PluginRecord(_object_name(plugin), "object", *_origin(plugin))
            if record.name in self.without:
                self.left_out.append(record)
                continue
            name, count = record.name, 2
            while name in self.records:
                name, count = f"{record.name}-{count}", count + 1
            record = attrs.evolve(record, name=name)
            loaded = self._examine(
                record, partial(_itself, plugin), _module_of(plugin), is_import=False
            )
            self._register(record, loaded)

    def find_unknown_names(self) -> list[str]:
        """Describe the names in ``without`` that no plugin has, in a sentence each."""
        known = {*self.records, *(record.name for record in self.left_out), *DEFAULTS}
        known |= {failure.plugin for failure in self.failures}
        unknown = sorted(name for name in self.without - known if ":" not in name)
        if unknown:
            for group in (GROUP, INSTANCE_GROUP):
                known |= {point.name for point in entry_points.entry_points(group)}
        return [
            f"there is no plugin {name!r} to leave out"
            + (f"; did you mean {near!r}?" if (near := nearest(name, known)) else "")
            for name in unknown
            if name not in known
        ]

    def check_loaded(self) -> None:
        """Raise the first failure, with the others in its details.

        Raises:
            PluginLoadError: A plugin could not be loaded.
        """
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
        """Return the record of a registered plugin, by its name."""
        return self.records.get(plugin_name) or PluginRecord(plugin_name, "object")

    def module(self, plugin_name: str) -> str:
        """Return the name of the module in which a registered plugin's code is, or ``""``."""
        return self._modules.get(plugin_name, "")

    def _add_failure(self, failure: PluginLoadError) -> None:
        """Note a failure, once: an instance's registry has those of its runtime's."""
        if all(failure.brief != known.brief for known in self.failures):
            self.failures.append(failure)

    def _load(self, record: PluginRecord, load: Callable[[], object], module: str) -> None:
        """Load one plugin alone: one that fails keeps no other away."""
        if record.name in self.without:
            self.left_out.append(record)
            return
        has_failed = any(failure.plugin == record.name for failure in self.known_failures)
        if has_failed and record.name not in self._loaded:
            return
        try:
            if record.name in self.records:
                raise PluginLoadError(
                    f"{record.describe()} has the name of another plugin, which is loaded: "
                    f"{self.records[record.name].describe()}",
                    hint="give the entry point another name",
                    plugin=record.name,
                )
            self._register(
                record, self._loaded.get(record.name) or self._examine(record, load, module)
            )
        except PluginLoadError as error:
            self._add_failure(error)
        except Interrupted:  # an end was requested: the plugin has not failed
            raise
        except Exception as error:  # a warning that is an error (-W error)
            self._add_failure(self._not_loaded(record, describe_failure(error)))

    def _examine(
        self,
        record: PluginRecord,
        load: Callable[[], object],
        module: str,
        *,
        is_import: bool = True,
    ) -> _Loaded:
        """Import, make and examine a plugin, where plugins' code runs.

        Raises:
            PluginLoadError: It fails, or does not come back in time.
        """

        def examine() -> _Loaded:
            plugin = load()
            if inspect.isclass(plugin):
                plugin = _make(plugin, record)
            hooks, functions, warning = self._find_hooks(plugin, record)
            return _Loaded(plugin, _module_of(plugin), hooks, functions, warning)

        package = module.partition(".")[0] if is_import else ""
        try:
            if record.is_first_party:
                return examine()
            if package and package in self.calls.stuck_modules:
                raise PluginLoadError(
                    f"{record.describe()} cannot be loaded: the import of {package} has not come "
                    "back",
                    hint=leave_out(record.name),
                    plugin=record.name,
                )
            return self.calls.call(
                record.name,
                "its import" if is_import else "its class",
                examine,
                seconds=self.calls.limit(self.timeout),
                module=module,
            )
        except HookTimeout as error:
            self.calls.stuck_modules.add(package)
            what = "its import" if is_import else "its class"
            raise PluginLoadError(
                f"{record.describe()} cannot be loaded: {what} {error}",
                hint=leave_out(record.name),
                plugin=record.name,
            ) from None
        except PluginLoadError:
            raise
        except Failure as failure:
            raise self._not_loaded(record, failure) from None
        except (KeyboardInterrupt, Interrupted) as error:
            if not record.is_first_party and not self.calls.is_isolated:
                error.add_note(f"{record.describe()}: while it was loaded")
            raise
        except (Exception, SystemExit) as error:  # of a first-party plugin
            raise self._not_loaded(record, describe_failure(error)) from error

    def _not_loaded(self, record: PluginRecord, failure: Failure) -> PluginLoadError:
        error = failure.error
        if type(error) is PluginLoadError:
            return error
        if type(error) is ModuleNotFoundError and error.name == _OWN_PACKAGE:
            return _no_package()
        found = PluginLoadError(
            f"{record.describe()} cannot be loaded: {failure.text}",
            failure.details,
            _remedy(record, error),
            plugin=record.name,
        )
        found.traceback = failure.traceback
        return found

    def _register(self, record: PluginRecord, loaded: _Loaded) -> None:
        """Register a plugin. Raises ``PluginLoadError``."""
        name = record.name
        try:
            self.manager.register(_Functions(loaded.plugin, loaded.functions), name)
        except (pluggy.PluginValidationError, ValueError) as error:
            text = str(error).splitlines()
            raise PluginLoadError(
                f"{record.describe()} cannot be registered: {text[0]}",
                [t.strip() for t in text[1:] if t.strip()],
                "the reference of hooks lists the arguments of each",
                plugin=name,
            ) from error
        if record.origin != "object":
            self._loaded[name] = loaded
        if loaded.warning:
            self.warnings.append(loaded.warning)
        self._modules[name] = loaded.module
        self.records[name] = attrs.evolve(record, hooks=loaded.hooks)
        deprecations.warn(self.manager, name, record.describe())

    def _find_hooks(
        self, plugin: object, record: PluginRecord
    ) -> tuple[tuple[str, ...], dict[str, Any], str]:
        """Return the names of a plugin's hooks, their functions by attribute, and a warning.

        Raises:
            PluginLoadError: It has a hook that is unknown, a coroutine, or a wrapper where none may
                be; or an instance names it, and it has none.
        """
        hooks: list[str] = []
        functions: dict[str, Any] = {}
        is_ready = False  # for a later chrootfw, whose hooks this one does not know
        for attribute in dir(plugin):
            options = self._parse(plugin, attribute)
            if options is None:
                if (
                    attribute.startswith("chrootfw_")
                    and not isinstance(plugin, ModuleType)
                    and inspect.isroutine(inspect.getattr_static(plugin, attribute))
                ):
                    raise _refuse(
                        record,
                        f" has {attribute} without the mark of a hook",
                        "decorate it with @chrootfw.hookimpl",
                        attribute,
                    )
                continue
            hook = options.get("specname") or attribute
            if hook not in specs.KINDS and options.get("optionalhook"):
                is_ready = True
                continue
            function = getattr(plugin, attribute)
            _check_hook(record, hook, function, options)
            hooks.append(hook)
            functions[attribute] = function
        if hooks or is_ready:
            return tuple(hooks), functions, ""
        if record.origin == "instance":
            raise _refuse(
                record, " implements no hook", "name a module, a class or an object with hooks"
            )
        return (), functions, f"{record.describe()} implements no hook, and has no effect"

    def _parse(self, plugin: object, name: str) -> Any:
        """Return the options of an implementation of a hook, or ``None``.

        Attributes of all objects are left out, and what a module has imported.
        """
        if name.startswith("__"):
            return None
        if isinstance(plugin, ModuleType):
            value = vars(plugin).get(name)
            if isinstance(value, FunctionType):
                if _MARK not in vars(value):
                    return None
            elif not isinstance(value, staticmethod | classmethod | MethodType):
                return None
        return self.manager.parse_hookimpl_opts(plugin, name)


def _refuse(record: PluginRecord, clause: str, hint: str, hook: str = "") -> PluginLoadError:
    """Make the error for a plugin that breaks a rule: what it does, as a clause."""
    return PluginLoadError(f"{record.describe()}{clause}", (), hint, plugin=record.name, hook=hook)


def _make(plugin: Any, record: PluginRecord) -> object:
    """Make an object of a class. Raises ``PluginLoadError``."""
    try:
        return plugin()
    except (KeyboardInterrupt, Interrupted):
        raise
    except BaseException as error:
        failure = describe_failure(error, plugin.__module__)
        made = PluginLoadError(
            f"{record.describe()} cannot be made: {failure.text}",
            failure.details,
            "pass an object, or a class that needs no arguments",
            plugin=record.name,
        )
        made.traceback = failure.traceback
        raise made from None


def _check_hook(record: PluginRecord, hook: str, function: Any, options: Mapping[str, Any]) -> None:
    """Check one implementation. Raises ``PluginLoadError``."""
    if hook not in specs.KINDS:
        near = nearest(hook, specs.KINDS)
        raise _refuse(
            record,
            f" implements {hook}, which is not a hook of chrootfw"
            + (f"; did you mean {near}?" if near else ""),
            "the hooks are chrootfw_"
            + ", ".join(name.removeprefix("chrootfw_") for name in specs.KINDS)
            + "; one of a later chrootfw needs hookimpl(optionalhook=True)",
            hook,
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise _refuse(record, f": {hook} is a coroutine; hooks are plain functions", "", hook)
    if options.get("hookwrapper"):
        raise _refuse(
            record,
            f": {hook} is an old-style wrapper, which can skip its own teardown",
            "use hookimpl(wrapper=True) and return (yield)",
            hook,
        )
    if specs.KINDS[hook] == "surround" and not options.get("wrapper"):
        raise _refuse(
            record,
            f": {hook} surrounds a stage and must be a wrapper",
            "use hookimpl(wrapper=True) and return (yield)",
            hook,
        )
    if specs.KINDS[hook] in ("contribute", "observe") and options.get("wrapper"):
        raise _refuse(
            record,
            f": {hook} cannot be wrapped; all its implementations are asked alike",
            "answer with values of your own: of two for one place the one asked first wins",
            hook,
        )


def check_sequence(values: Any, argument: str, what: str) -> tuple[Any, ...]:
    """Return an argument as a tuple; refuse a lone value.

    Args:
        values: What was given.
        argument: The name of the argument.
        what: What it is to be a sequence of.

    Raises:
        InputError: It is not a sequence, or it is a text or a class.
    """
    if isinstance(values, str | bytes | type) or not isinstance(values, Iterable):
        raise InputError(
            f"{argument} is {_object_text(values)}; it must be a sequence of {what}",
            hint=f"{argument}=[…]",
        )
    return tuple(values)


def _check_object(plugin: object) -> None:
    """Refuse what is passed as a plugin and cannot be one. Raises ``PluginLoadError``."""
    hint = "pass an object, a class or a module with hooks"
    if isinstance(plugin, str):
        hint = (
            "a name is not a plugin: pass the object, or discover=True for the installed plugins,"
            " or name it in Instance(…, plugins=[…])"
        )
    elif isinstance(plugin, list | tuple | set | dict):
        hint = "pass its items, one by one"
    elif plugin is not None and not inspect.isroutine(plugin):
        return
    raise PluginLoadError(f"{_object_text(plugin)} is passed as a plugin, and is none", hint=hint)


def _object_text(value: object) -> str:
    if inspect.isclass(value):
        return f"the class {value.__qualname__}"
    if isinstance(value, str | bytes) or value is None:
        return f"{value!r:.60}"
    return f"a {type(value).__name__}"


def find_plugins(group: str) -> list[tuple[PluginRecord, Callable[[], object]]]:
    """Find the installed plugins of an entry-point group.

    Returns:
        ``(record, load)`` of each, chrootfw's own first, sorted by name.
    """
    return [(record, load) for record, load, _ in _find(group)[0]]


def _find(
    group: str,
) -> tuple[list[tuple[PluginRecord, Callable[[], object], str]], list[PluginLoadError]]:
    """Find the installed plugins, their modules, and an error for each name that two have."""
    found: dict[str, tuple[PluginRecord, Callable[[], object], str]] = {}
    twice: list[PluginLoadError] = []
    for point in entry_points.entry_points(group):
        ours = "first-party" if point.distribution == "chrootfw" else "installed"
        record = PluginRecord(
            point.name, ours if group == GROUP else "instance", point.distribution, point.version
        )
        first, _, _ = found.setdefault(point.name, (record, point.load, point.module))
        if first is not record:
            twice.append(
                PluginLoadError(
                    f"two plugins have the name {point.name}: that of {_distribution(first)}, "
                    f"which is loaded, and that of {_distribution(record)}, which is not",
                    hint=leave_out(record.name, "uninstall one of the two; "),
                    plugin=point.name,
                )
            )
    names = sorted(found, key=lambda name: (found[name][0].origin != "first-party", name))
    return [found[name] for name in names], twice


def _distribution(record: PluginRecord) -> str:
    return f"{record.distribution} {record.version}".strip() or "an unknown distribution"


def leave_out(name: str, before: str = "") -> Hint:
    """Return the hint that says how to do without a plugin.

    Args:
        name: The plugin's name.
        before: What else can be done.
    """
    return Hint(
        f"{before}Runtime(without=[{name!r}]) leaves it out",
        f"{before}--without {name} leaves it out",
    )


def _no_package() -> PluginLoadError:
    """Return the error for the default plugins as a whole, where their package is missing."""
    return PluginLoadError(
        f"the default plugins of chrootfw are missing: there is no package {_OWN_PACKAGE}",
        hint="reinstall chrootfw; a source tree has to be installed: python3 -m pip install .",
        plugin=_OWN_PACKAGE,
    )


def _remedy(record: PluginRecord, error: BaseException | None) -> Hint:
    """Return what to do about a plugin that cannot be loaded.

    A ``module:attribute`` is most often just not found.
    """
    module, _, attribute = record.name.partition(":")
    missing = error.name if type(error) is ModuleNotFoundError and error.name else ""
    if attribute and missing and f"{module}.".startswith(f"{missing}."):
        return leave_out(
            record.name,
            "install it, or name its directory in PYTHONPATH, which sudo does not pass on; ",
        )
    return leave_out(record.name, "repair or remove it; ")


def _itself(plugin: object) -> object:
    return plugin


def _module_of(plugin: object) -> str:
    """Return the name of the module in which a plugin's code is."""
    if isinstance(plugin, ModuleType):
        return plugin.__name__
    return (plugin if inspect.isclass(plugin) else type(plugin)).__module__


def _object_name(plugin: object) -> str:
    if isinstance(plugin, ModuleType):
        return plugin.__name__
    return (plugin if inspect.isclass(plugin) else type(plugin)).__qualname__


def _origin(plugin: object) -> tuple[str, str]:
    """Return the module of a plugin object and its version, as distribution and version."""
    module = (
        plugin
        if isinstance(plugin, ModuleType)
        else inspect.getmodule(plugin if inspect.isclass(plugin) else type(plugin))
    )
    return (module.__name__ if module else "", str(getattr(module, "__version__", "")))


__all__ = [
    "DEFAULTS",
    "GROUP",
    "INSTANCE_GROUP",
    "PluginError",
    "PluginRecord",
    "Registry",
    "find_plugins",
]
