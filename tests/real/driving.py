"""Driving chrootfw from outside (the command) and from inside (the library)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import kernelview
import leaks
import roots

import chrootfw

#: No command takes this long; one that does hangs.
TIMEOUT = 180


class Result:
    """How one run of the command ended."""

    def __init__(self, argv: Sequence[str], status: int, stdout: str, stderr: str) -> None:
        self.argv = argv
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"chrootfw {' '.join(self.argv)}\nstatus {self.status}\nstdout: {self.stdout}\nstderr: {self.stderr}"

    @property
    def brief(self) -> str:
        """The sentence with which an error begins."""
        return self.stderr.partition("\n")[0]

    def json(self) -> Any:
        import json_schema  # here, for a command that imports a module of tests as a plugin

        value = json.loads(self.stdout)
        json_schema.check(list(self.argv), value)
        return value


class Cli:
    """``chrootfw`` as a command, with a run directory and definitions of its own."""

    def __init__(self, run_dir: Path, config_dir: Path, ground: leaks.Ground) -> None:
        self.run_dir = run_dir
        self.config_dir = config_dir
        self.log_dir = Path(os.environ["CHROOTFW_LOG_DIR"])
        self.ground = ground
        self.begun: list[subprocess.Popen[str]] = []

    def __call__(
        self,
        *argv: str,
        expect: int | Collection[int] = 0,
        says: Collection[str] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **how: Any,
    ) -> Result:
        """Run it to its end.

        ``expect``: the exit status, or those that will do. ``says``: words that the error's first line must have.
        """
        __tracebackhide__ = True
        process = self.begin(*argv, env=env, prefix=prefix, **how)
        return self.end(process, expect=expect, says=says)

    def begin(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        **how: Any,
    ) -> subprocess.Popen[str]:
        """Start it and go on."""
        how = {
            "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
            "errors": "surrogateescape", "cwd": "/", **how,
        }  # fmt: skip
        command = [*prefix, sys.executable, "-m", "chrootfw", *argv]
        process = subprocess.Popen(command, env={**self.environment(), **(env or {})}, **how)
        self.begun.append(process)
        return process

    def end_all(self) -> None:
        """End what a failed test began, so that it does not fail the tests after it."""
        for process in self.begun:
            if process.poll() is None:
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # in state D
                process.wait(timeout=5)

    def end(
        self,
        process: subprocess.Popen[str],
        *,
        expect: int | Collection[int] = 0,
        says: Collection[str] = (),
        input: str | None = None,
    ) -> Result:
        """Wait for its end and look at how it went."""
        __tracebackhide__ = True
        argv = process.args[process.args.index("chrootfw") + 1 :]  # type: ignore[index,union-attr]  # a list, from begin
        try:
            stdout, stderr = process.communicate(input, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                stdout, stderr = process.communicate(timeout=5)
            except (
                subprocess.TimeoutExpired
            ):  # in state D: ended when the test's own clean-up lets it go
                stdout, stderr = "", "(and KILL does not end it)"
            raise AssertionError(f"hangs: {Result(argv, -9, stdout, stderr)}") from None
        finally:
            self.ground.know_run_dir(self.run_dir)
        result = Result(argv, process.returncode, stdout or "", stderr or "")
        expected = (expect,) if isinstance(expect, int) else expect
        assert result.status in expected, f"expected status {expect}: {result}"
        assert "Traceback" not in result.stderr, result
        assert "internal error" not in result.stderr, result
        for words in says:
            assert words in result.brief, f"expected {words!r} in the first line: {result}"
        if says:
            assert len(result.brief) < 400, f"one clear sentence, please: {result}"
        return result

    def json(self, *argv: str, **how: Any) -> Any:
        """Run it with ``--json``, and give back what it printed."""
        return self(*argv, "--json", **how).json()

    def environment(self) -> dict[str, str]:
        packages = {
            str(Path(_origin(name)).parent.parent): None
            for name in ("chrootfw", "chrootfw_defaults")
        }
        inherited = {
            key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
        }
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(packages),
            "PYTHONPYCACHEPREFIX": str(
                self.ground.files / "bytecode"
            ),  # compiled once, and outside the tree
            "CHROOTFW_RUN_DIR": str(self.run_dir),
            "CHROOTFW_CONFIG_DIR": str(self.config_dir),
            "CHROOTFW_LOG_DIR": str(self.log_dir),
        }


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def _origin(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    if spec.origin is not None:
        return spec.origin
    assert spec.submodule_search_locations is not None
    return f"{spec.submodule_search_locations[0]}/__init__.py"


class Chroot:
    """An instance under test, and the file system that it is made of."""

    def __init__(
        self, name: str, disk: Path, cli: Cli, runtime: chrootfw.Runtime, params: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.disk = disk
        self.runtime = runtime
        self._cli = cli
        self.definition = cli.config_dir / f"{name}.toml"
        self.root = cli.run_dir / name / "root"
        self.define(**params)

    def define(self, **params: Any) -> None:
        """Write its definition anew; ``disk`` is this one's unless said otherwise."""
        lines = [
            f"{key} = {_toml(value)}\n" for key, value in {"disk": str(self.disk), **params}.items()
        ]
        self.definition.write_text("".join(lines))

    def cli(self, verb: str, *argv: str, **how: Any) -> Result:
        """Run the command for this instance."""
        __tracebackhide__ = True
        first, *more = verb.split(" ")
        return self._cli(first, *more, self.name, *argv, **how)

    def start(self) -> chrootfw.InstanceInfo:
        """By the library."""
        return self.runtime.start(self.name)

    def stop(self, **how: Any) -> Any:
        """By the library."""
        return self.runtime.stop(self.name, **how)

    @property
    def state(self) -> str:
        return str(self.runtime.info(self.name).state)

    @property
    def root_mount(self) -> int:
        """The ID of the mount that is its root."""
        mount = kernelview.mount_on(self.root)
        assert mount is not None, f"nothing is mounted on {self.root}"
        return mount.id

    def pids(self, command: str = "") -> set[int]:
        """Its own processes, or those with one command."""
        return {
            process.pid
            for process in self.runtime.processes(self.name)
            if process.own and command in ("", process.command)
        }

    def calls(self) -> list[str]:
        """What its init script was called with, one after the other."""
        top = self.root if kernelview.mount_on(self.root) else self.disk
        file = top / "var/calls"
        return file.read_text().split() if file.exists() else []

    def write_init(self, text: str | bytes) -> None:
        """Replace the init script of an instance on a directory."""
        roots.write_init(self.disk, text)

    def is_gone(self) -> bool:
        """Whether the kernel has nothing of it any more."""
        return not kernelview.mounts_below(self.root) and not (
            self.disk.is_file() and kernelview.loops_over(self.disk)
        )
