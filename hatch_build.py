"""Compile `chrootfw.linux._native` for a wheel, if there is a compiler.

CHROOTFW_BUILD_NATIVE=1 requires it, =0 leaves it out, and =auto, the default, tries. Without it the
wheel is pure, and chrootfw starts its children more slowly. setuptools only drives the compiler.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NAME = "chrootfw.linux._native"
_SOURCE = "chrootfw/linux/_native.c"
_TARGET = "chrootfw/linux/_native.abi3.so"
_CHOICES = ("auto", "0", "1")


class NativeBuildHook(BuildHookInterface[Any]):
    """The hook: `initialize` compiles, `finalize` removes what it compiled."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the module to the wheel, and its tag to the wheel's name."""
        self.scratch = ""
        wanted = os.environ.get("CHROOTFW_BUILD_NATIVE", "") or "auto"
        if wanted not in _CHOICES:
            raise ValueError(f"CHROOTFW_BUILD_NATIVE={wanted}: it is one of {', '.join(_CHOICES)}")
        in_tree = Path(self.root, _TARGET)
        if version == "editable":
            in_tree.unlink(missing_ok=True)  # of an earlier source
        if wanted == "0":
            return
        try:
            built = self._compile()
        except (Exception, SystemExit) as error:
            if wanted == "1":
                raise
            self.app.display_warning(
                f"{_NAME} was not built ({error}); chrootfw works without it, more slowly"
            )
            return
        if version == "editable":
            shutil.copy(built, in_tree)
        else:
            build_data["force_include"][str(built)] = _TARGET
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _compile(self) -> Path:
        if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise RuntimeError("this Python has no stable ABI")
        from setuptools import Distribution, Extension

        self.scratch = tempfile.mkdtemp()
        # A fork must not look functions up: another thread may hold the dynamic linker's lock.
        flags = ["-Wl,-z,now"]
        extension = Extension(_NAME, [_SOURCE], py_limited_api=True, extra_link_args=flags)
        distribution = Distribution({"name": "chrootfw", "ext_modules": [extension]})
        command: Any = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = self.scratch, f"{self.scratch}/objects"
        command.ensure_finalized()
        before = Path.cwd()
        os.chdir(self.root)
        try:
            command.run()
        finally:
            os.chdir(before)
        return Path(command.get_ext_fullpath(_NAME))
