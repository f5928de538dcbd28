import importlib
import sys
import types
from unittest.mock import MagicMock

import pytest

GANETI = ("constants", "errors", "objects", "utils", "hypervisor.hv_base")


@pytest.fixture
def hypervisor(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module as a node imports it, with empty modules in the place of Ganeti's."""
    for name in GANETI:
        monkeypatch.setitem(sys.modules, f"ganeti.{name}", MagicMock(BaseHypervisor=object))
    for error in ("HypervisorError", "HotplugError", "GenericError"):
        setattr(sys.modules["ganeti.errors"], error, type(error, (Exception,), {}))
    monkeypatch.delitem(sys.modules, "chrootfw_ganeti.hypervisor", raising=False)
    module = importlib.import_module("chrootfw_ganeti.hypervisor")
    monkeypatch.delitem(sys.modules, "chrootfw_ganeti.hypervisor")
    return module


def test_the_node_daemon_can_warm_up(hypervisor: types.ModuleType) -> None:
    hypervisor.warm_up()
