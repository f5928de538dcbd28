"""Which plugins get in, which are refused, and with which words."""

import re
import sys
import time
import types

import pytest

import chrootfw
from chrootfw import hookimpl
from chrootfw.errors import InputError, PluginLoadError
from chrootfw.hooks import registry as registries
from chrootfw.hooks.registry import PluginRecord, Registry
from chrootfw.hooks.specs import KINDS
from chrootfw.hooks.time_limits import PluginCalls


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
    (
        Misspelt,
        "implements chrootfw_kill_stratgy, which is not a hook of chrootfw; did you mean chrootfw_kill_strategy?",
    ),
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
    assert implementation.function(None) is None


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
    with pytest.raises(PluginLoadError) as caught:
        Registry([good, good], defaults=False)
    assert caught.value.brief == "plugin Good (test_registry) is passed twice: the same object"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("acme_disks", "'acme_disks' is passed as a plugin, and is none"),
        (None, "None is passed as a plugin, and is none"),
        (lambda: 1, "a function is passed as a plugin, and is none"),
        ([Good], "a list is passed as a plugin, and is none"),
    ],
)
def test_what_is_no_plugin_is_refused(wrong, words):
    with pytest.raises(PluginLoadError) as caught:
        chrootfw.Runtime([wrong])
    assert caught.value.brief == words
    assert caught.value.hint


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"plugins": Good}, "plugins is the class Good; it must be a sequence of plugins"),
        ({"plugins": "acme"}, "plugins is 'acme'; it must be a sequence of plugins"),
        ({"without": "acme"}, "without is 'acme'; it must be a sequence of names of plugins"),
        ({"hook_timeout": "x"}, "hook_timeout is 'x'"),
        ({"hook_timeout": None}, "hook_timeout is None"),
        ({"lock_timeout": None}, "lock_timeout is None"),
        ({"on_event": 3}, "on_event is 3; it must be a function"),
        ({"cancellation": 3}, "cancellation is 3"),
    ],
)
def test_an_argument_of_a_wrong_kind_is_refused(how, words):
    with pytest.raises(InputError, match=re.escape(words)):
        chrootfw.Runtime(**how)


def test_a_coroutine_as_on_event_is_refused():
    async def on_event(event):
        pass

    class Callable:
        async def __call__(self, event):
            pass

    for wrong in (on_event, Callable()):
        with pytest.raises(InputError, match="on_event is a coroutine function"):
            chrootfw.Runtime(on_event=wrong)


def test_a_plugin_without_hooks_is_warned_of():
    told = []
    chrootfw.Runtime([type("Empty", (), {})], on_event=told.append)
    assert [(event.what, event.does) for event in told] == [
        ("warning", "plugin Empty (test_registry) implements no hook, and has no effect")
    ]


def test_a_name_to_leave_out_that_no_plugin_has_is_warned_of(install):
    install("chrootfw_own", group=registries.INSTANCE_GROUP, snapshots=MOUNTS)
    told = []
    without = ["snapshot", "snapshots", "chrootfw_defaults.binds", "module:Attribute", "Good"]
    chrootfw.Runtime([Good], without=without, on_event=told.append)
    assert [event.does for event in told] == [
        "there is no plugin 'snapshot' to leave out; did you mean 'snapshots'?"
    ]


def test_a_hook_of_a_later_chrootfw_may_be_optional():
    class Later(Good):
        @hookimpl(optionalhook=True)
        def chrootfw_later(self, something):
            raise AssertionError("called")

    (record,) = Registry([Later], defaults=False).records.values()
    assert record.hooks == ("chrootfw_mount",)
    told = []
    chrootfw.Runtime(
        [type("Only", (), {"chrootfw_later": Later.chrootfw_later})], on_event=told.append
    )
    assert told == []


def test_nothing_of_a_plugin_is_read_but_its_hooks():
    class Reads(Good):
        @property
        def chrootfw_property(self):
            raise AssertionError("read")

        def __eq__(self, other):
            raise AssertionError("compared")

        __hash__ = None

    assert len(Registry([Reads(), Reads()], defaults=False).records) == 2


BASE_EXCEPTIONS = (
    "SystemExit",
    "GeneratorExit",
    "StopIteration",
    "asyncio.CancelledError",
    "KeyboardInterrupt",
)


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
@pytest.mark.parametrize("where", ["import", "class"])
def test_isolated_every_exception_of_loading_is_attributed(install, error, where):
    imports = f"import asyncio\nraise {error}\n"
    makes = f"import asyncio\nclass K:\n  def __init__(self):\n    raise {error}\n"
    install("chrootfw_bad", bad=imports if where == "import" else makes)
    (failure,) = (
        Registry(defaults=False, calls=PluginCalls(is_isolated=True))
        .for_instance(["bad_plugin:K"])
        .failures
    )
    assert failure.plugin == "bad_plugin:K"
    assert error.rpartition(".")[2] in failure.brief


def test_in_the_callers_thread_ctrl_c_while_loading_is_raised(install):
    install("chrootfw_bad", bad="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt) as caught:
        Registry(defaults=False, discover=True)
    assert any("plugin bad (chrootfw_bad 1.2)" in note for note in caught.value.__notes__)


def test_an_import_that_does_not_come_back_keeps_no_other_plugin_away(install):
    waits = "import time\ntime.sleep(5)\n"
    install("chrootfw_bad", aaa=MOUNTS, bad=waits, zzz=MOUNTS)
    calls = PluginCalls(is_isolated=True)
    base = Registry(
        defaults=False, discover=True, without=["chrootfw_hardened"], calls=calls, timeout=0.3
    )
    assert list(base.records) == ["aaa", "zzz"]
    (failure,) = base.failures
    assert failure.brief == (
        "plugin bad (chrootfw_bad 1.2) cannot be loaded: its import did not come back within 0.3 s"
    )
    began = time.monotonic()
    more = base.for_instance(["bad_plugin:Other"])
    assert time.monotonic() - began < 0.3, "nothing waits for that module a second time"
    assert [failure.plugin for failure in more.failures] == ["bad", "bad_plugin:Other"]


def test_a_plugin_is_made_once(install):
    install(
        "chrootfw_kit",
        kit=f"made = []\n{MOUNTS}class Kit:\n  def __init__(self): made.append(1)\n"
        "  @hookimpl\n  def chrootfw_event(self): pass\nclass Other(Kit): pass\n",
    )
    base = Registry(defaults=False).for_instance(["kit_plugin:Kit"])
    base.for_instance(["kit_plugin:Kit", "kit_plugin:Other"])
    assert sys.modules["kit_plugin"].made == [1, 1]


def test_of_two_plugins_of_one_name_both_are_named(install):
    install("acme_one", same=MOUNTS)
    install("acme_two", same=MOUNTS)
    registry = Registry(defaults=False, discover=True, without=["chrootfw_hardened"])
    assert list(registry.records) == ["same"]
    (failure,) = registry.failures
    assert "two plugins have the name same" in failure.brief
    assert "acme_one 1.2" in failure.brief
    assert "acme_two 1.2" in failure.brief
    assert Registry(defaults=False, discover=True, without=["same"]).failures == []


def test_an_instances_plugin_may_be_a_module(install):
    install("chrootfw_mod", layers=MOUNTS)
    registry = Registry(defaults=False).for_instance(["layers_plugin:"])
    assert registry.failures == []


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
    assert (
        PluginRecord("a", "installed", "chrootfw-a", "1.2").describe()
        == "plugin a (chrootfw-a 1.2)"
    )
    assert Registry(defaults=False).record("unknown") == PluginRecord("unknown", "object")


def test_every_hook_has_a_kind():
    specified = {name for name in vars(registries.specs) if name.startswith("chrootfw_")}
    assert set(KINDS) == specified


# Installed plugins: a real distribution on the path.


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution whose plugins are ``name=source``; its modules are ``NAME_plugin``."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution, group=registries.GROUP, **sources):
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
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
    monkeypatch.setattr(registries, "DEFAULTS", ("no_such_default", "aaa_plugin"))
    registry = Registry()
    assert [failure.plugin for failure in registry.failures] == ["no_such_default"]
    assert registry.records["aaa_plugin"].origin == "default"


def test_the_bands_are_asked_from_the_last(install, monkeypatch):
    install("chrootfw_many", zzz=MOUNTS, mmm=MOUNTS, base=MOUNTS)
    monkeypatch.setattr(registries, "DEFAULTS", ("base_plugin",))
    registry = Registry([Good()], discover=True, without=["base"])
    asked = [i.plugin_name for i in reversed(registry.manager.hook.chrootfw_mount.get_hookimpls())]
    assert asked == ["Good", "zzz", "mmm", "base_plugin"]


def test_an_instances_own_plugins(install):
    install("chrootfw_own", group=registries.INSTANCE_GROUP, snapshots=MOUNTS)
    base = Registry([Good()], defaults=False)
    more = base.for_instance(["snapshots", "snapshots"])
    assert list(more.records) == ["snapshots", "Good"]  # what the program passes is asked before it
    assert more.records["snapshots"].origin == "instance"
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
    install("chrootfw_own", group=registries.INSTANCE_GROUP, snapshots=MOUNTS)
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
def test_a_module_that_python_does_not_find_is_told_from_one_that_needs_another(
    install, name, says
):
    install("chrootfw_own", group=registries.INSTANCE_GROUP, needy="import no_such_module")
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
    assert "kit" in [
        record.name for record in chrootfw.Runtime(discover=True, config_dir=tmp_path).plugins()
    ]
    (tmp_path / "_node.toml").write_text('without = ["kit"]')
    runtime = chrootfw.Runtime(discover=True, config_dir=tmp_path)
    assert "kit" not in [record.name for record in runtime.plugins()]
    assert [record.describe() for record in runtime.plugins_left_out()] == [
        "plugin kit (kit_things 1.2)"
    ]
    assert runtime.list() == []  # and it is no definition


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("without = [", "is not valid TOML"),
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
