"""Which plugins get in, which are refused, and with which words."""

import sys
import types

import pytest

import chrootfw
from chrootfw import hookimpl, plugins
from chrootfw.errors import PluginLoadError
from chrootfw.hookspecs import KINDS
from chrootfw.plugins import PluginRecord, Registry


class Good:
    @hookimpl
    def chrootfw_mount(self, instance):
        return None


class Misspelt:
    @hookimpl
    def chrootfw_kill_stratgy(self, processes):
        return None


class MisspeltBySpecname:
    @hookimpl(specname="chrootfw_mounts")
    def layers(self):
        return None


class Unmarked:
    def chrootfw_mount(self, instance):
        return None


class Coroutine:
    @hookimpl
    async def chrootfw_mount(self, instance):
        return None


class AsyncGenerator:
    @hookimpl
    async def chrootfw_mount(self, instance):
        yield None


class OldWrapper:
    @hookimpl(hookwrapper=True)
    def chrootfw_unmount_ordering(self):
        yield


class NoWrapper:
    @hookimpl
    def chrootfw_around_stage(self, stage):
        return None


class WrapsAContribution:
    @hookimpl(wrapper=True)
    def chrootfw_mount(self):
        return (yield)


class WrapsAnObserver:
    @hookimpl(wrapper=True)
    def chrootfw_event(self):
        return (yield)


class WrapperWithoutYield:
    @hookimpl(wrapper=True)
    def chrootfw_around_stage(self, stage):
        return None


class WantsTooMuch:
    @hookimpl
    def chrootfw_mount(self, instance, disk):
        return None


class NeedsArguments:
    def __init__(self, volume):
        self.volume = volume


REFUSED = [
    (Misspelt, "implements chrootfw_kill_stratgy, which is no hook of chrootfw; did you mean chrootfw_kill_strategy?"),
    (MisspeltBySpecname, "did you mean chrootfw_mount?"),
    (Unmarked, "has chrootfw_mount without the mark of a hook"),
    (Coroutine, "chrootfw_mount is a coroutine"),
    (AsyncGenerator, "chrootfw_mount is a coroutine"),
    (OldWrapper, "chrootfw_unmount_ordering is an old-style wrapper"),
    (NoWrapper, "chrootfw_around_stage surrounds a stage and must be a wrapper"),
    (WrapsAContribution, "chrootfw_mount cannot be wrapped"),
    (WrapsAnObserver, "chrootfw_event cannot be wrapped"),
    (WrapperWithoutYield, "cannot be registered"),
    (WantsTooMuch, "cannot be registered"),
    (NeedsArguments, "cannot be made: TypeError"),
]


@pytest.mark.parametrize(("plugin", "words"), REFUSED, ids=[cls.__name__ for cls, _ in REFUSED])
def test_what_is_refused_is_named(plugin, words):
    with pytest.raises(PluginLoadError) as caught:
        Registry([plugin], defaults=False)
    assert words in caught.value.brief
    assert f"plugin {plugin.__name__}" in caught.value.brief
    assert caught.value.plugin == plugin.__name__


def test_a_refused_argument_is_told_in_the_details():
    with pytest.raises(PluginLoadError) as caught:
        Registry([WantsTooMuch()], defaults=False)
    assert any("disk" in line for line in caught.value.details)


def test_a_name_like_no_hook_gets_no_suggestion_but_the_list():
    plugin = types.SimpleNamespace()
    plugin.zzz = hookimpl(specname="zzz")(lambda: None)
    with pytest.raises(PluginLoadError) as caught:
        Registry([plugin], defaults=False)
    assert "did you mean" not in caught.value.brief
    assert "chrootfw_parameters, mount" in caught.value.hint


@pytest.mark.parametrize("plugin", [Good, Good()])
def test_a_class_is_as_good_as_an_object(plugin):
    registry = Registry([plugin], defaults=False)
    assert registry.records["Good"].hooks == ("chrootfw_mount",)
    (implementation,) = registry.manager.hook.chrootfw_mount.get_hookimpls()
    assert isinstance(implementation.plugin, Good)


def test_a_module_is_a_plugin_and_may_have_helpers():
    module = types.ModuleType("layers")
    module.chrootfw_helper = lambda: None
    module.chrootfw_mount = hookimpl(Good.chrootfw_mount)
    module.__version__ = "1.2"
    registry = Registry([module], defaults=False)
    assert registry.record("layers").describe() == "plugin layers (layers 1.2)"


def test_two_objects_of_one_class_get_two_names():
    registry = Registry([Good(), Good(), Good()], defaults=False)
    assert list(registry.records) == ["Good", "Good-2", "Good-3"]


def test_one_object_twice_is_refused():
    good = Good()
    with pytest.raises(PluginLoadError, match="cannot be registered"):
        Registry([good, good], defaults=False)


def test_without_leaves_a_plugin_out_before_it_is_made():
    registry = Registry([NeedsArguments, Good], defaults=False, without=["NeedsArguments"])
    assert list(registry.records) == ["Good"]


def test_a_property_of_a_plugin_is_not_run():
    class Lazy(Good):
        @property
        def volume(self):
            raise AssertionError("read")

    Registry([Lazy()], defaults=False)


def test_two_registries_share_nothing():
    assert Registry([Good()], defaults=False).records
    assert not Registry(defaults=False).records
    assert not Registry(defaults=False).manager.get_plugins()


def test_a_record_describes_itself():
    assert PluginRecord("a", "object").describe() == "plugin a"
    assert PluginRecord("a", "installed", "chrootfw-a", "1.2").describe() == "plugin a (chrootfw-a 1.2)"
    assert Registry(defaults=False).record("unknown") == PluginRecord("unknown", "object")


def test_every_hook_has_a_kind():
    specified = {name for name in vars(plugins.hookspecs) if name.startswith("chrootfw_")}
    assert set(KINDS) == specified


# Installed plugins: a real distribution on the path.


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution whose plugins are ``name=source``; its modules are ``NAME_plugin``."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution, group=plugins.GROUP, **sources):
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {name}_plugin" for name in sources]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        for name, source in sources.items():
            (tmp_path / f"{name}_plugin.py").write_text(source)

    yield install
    for name in [name for name in sys.modules if name.endswith("_plugin")]:
        del sys.modules[name]


MOUNTS = "from chrootfw import hookimpl\n@hookimpl\ndef chrootfw_mount(instance): pass\n"
MISSPELT = MOUNTS.replace("chrootfw_mount", "chrootfw_munt")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module_of_ours", "cannot be loaded: ModuleNotFoundError"),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        ("def broken(:", "cannot be loaded: SyntaxError"),
        (MISSPELT, "did you mean chrootfw_mount?"),
    ],
)
def test_a_plugin_that_fails_is_loaded_alone(install, source, words):
    install("chrootfw_many", aaa_good=MOUNTS, bbb_bad=source, ccc_good=MOUNTS)
    registry = Registry(defaults=False, discover=True)
    assert [name for name in registry.records if name.endswith("good")] == ["aaa_good", "ccc_good"]
    (failure,) = registry.failures
    assert failure.plugin == "bbb_bad"
    assert words in failure.brief
    assert "plugin bbb_bad (chrootfw_many 1.2)" in failure.brief
    with pytest.raises(PluginLoadError, match="bbb_bad"):
        registry.check_loaded()


def test_all_failures_are_told_at_once(install):
    install("chrootfw_many", aaa_bad="import no_such_a", bbb_bad="import no_such_b")
    with pytest.raises(PluginLoadError) as caught:
        Registry(defaults=False, discover=True).check_loaded()
    assert "no_such_a" in caught.value.brief
    assert any("no_such_b" in line for line in caught.value.details)


def test_without_a_failing_plugin_all_is_well(install):
    install("chrootfw_many", bbb_bad="raise AssertionError('imported')")
    registry = Registry(defaults=False, discover=True, without=["bbb_bad"])
    registry.check_loaded()
    assert "bbb_bad" not in registry.records


def test_a_failing_default_is_loaded_alone(install, monkeypatch):
    install("chrootfw_many", aaa=MOUNTS)
    monkeypatch.setattr(plugins, "DEFAULTS", ("no_such_default", "aaa_plugin"))
    registry = Registry()
    assert [failure.plugin for failure in registry.failures] == ["no_such_default"]
    assert registry.records["aaa_plugin"].band == "default"


def test_the_bands_are_asked_from_the_last(install, monkeypatch):
    install("chrootfw_many", zzz=MOUNTS, mmm=MOUNTS, base=MOUNTS)
    monkeypatch.setattr(plugins, "DEFAULTS", ("base_plugin",))
    registry = Registry([Good()], discover=True, without=["base"])
    asked = [i.plugin_name for i in reversed(registry.manager.hook.chrootfw_mount.get_hookimpls())]
    assert asked == ["Good", "zzz", "mmm", "base_plugin"]


def test_an_instances_own_plugins(install):
    install("chrootfw_own", group=plugins.INSTANCE_GROUP, snapshots=MOUNTS)
    base = Registry([Good()], defaults=False)
    more = base.for_instance(["snapshots", "snapshots"])
    assert list(more.records) == ["snapshots", "Good"]  # what the program passes is asked before it
    assert more.records["snapshots"].band == "instance"
    assert list(base.records) == ["Good"]
    assert base.for_instance([]) is base


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("snapshot", "there is no plugin 'snapshot'; did you mean 'snapshots'?"),
        ("qqq", "there is no plugin 'qqq'"),
        ("snapshots_plugin:Missing", "cannot be loaded: AttributeError"),
        ("no_such_module:x", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_an_instances_unknown_plugin_is_a_failure(install, name, words):
    install("chrootfw_own", group=plugins.INSTANCE_GROUP, snapshots=MOUNTS)
    registry = Registry(defaults=False).for_instance([name])
    (failure,) = registry.failures
    assert words in failure.brief
    assert failure.plugin == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:x", "PYTHONPATH"),
        ("no_such_package.module:x", "PYTHONPATH"),
        ("needy_plugin:x", "repair or remove it"),
        ("needy_plugin.part:x", "repair or remove it"),
    ],
)
def test_a_module_that_python_does_not_find_is_told_from_one_that_needs_another(install, name, says):
    install("chrootfw_own", group=plugins.INSTANCE_GROUP, needy="import no_such_module")
    (failure,) = Registry(defaults=False).for_instance([name]).failures
    assert says in failure.hint


def test_an_instances_plugin_by_reference(install):
    install(
        "chrootfw_ref",
        kit="from chrootfw import hookimpl\nclass A:\n  class B:\n    @hookimpl\n    def chrootfw_event(self): pass\n",
    )
    registry = Registry(defaults=False).for_instance(["kit_plugin:A.B"])
    assert registry.failures == []
    assert "kit_plugin:A.B" in registry.records
    (failure,) = Registry(defaults=False).for_instance(["kit_plugin:A"]).failures
    assert "implements no hook" in failure.brief


def test_without_covers_an_instances_plugins():
    base = Registry(defaults=False, without=["no_such_module:x"])
    assert base.for_instance(["no_such_module:x"]).failures == []


# The plugins that a machine leaves out.


def test_a_machine_leaves_plugins_out(install, tmp_path):
    install("kit_things", kit=MOUNTS)
    assert "kit" in [record.name for record in chrootfw.Runtime(discover=True, config_dir=tmp_path).plugins()]
    (tmp_path / "_node.toml").write_text('without = ["kit"]')
    runtime = chrootfw.Runtime(discover=True, config_dir=tmp_path)
    assert "kit" not in [record.name for record in runtime.plugins()]
    assert [record.describe() for record in runtime.plugins_left_out()] == ["plugin kit (kit_things 1.2)"]
    assert runtime.list() == []  # and it is no definition


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("without = [", "is no TOML"),
        ('without = "kit"', "the key without is 'kit'; it must be a list of strings"),
        ("without = [1]", "it must be a list of strings"),
        ('with = ["kit"]', "there is no key 'with'"),
    ],
)
def test_what_a_machine_leaves_out_must_be_readable_for_a_start_only(tmp_path, text, words):
    (tmp_path / "_node.toml").write_text(text)
    (failure,) = chrootfw.Runtime(discover=True, config_dir=tmp_path).plugin_failures()
    assert "_node.toml" in failure.brief
    assert words in failure.brief
    assert chrootfw.Runtime(discover=True, config_dir=tmp_path).list() == []
