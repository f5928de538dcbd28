"""Entry points by their files: what importlib.metadata finds, found without it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from chrootfw.hooks import entry_points

Found = list[tuple[str, str, str, str]]


def by_us(group: str) -> Found:
    return sorted(
        (p.name, p.value, p.distribution, p.version) for p in entry_points.entry_points(group)
    )


def by_importlib(group: str) -> Found:
    points = importlib.metadata.entry_points(group=group)
    return sorted((p.name, p.value, p.dist.name, p.dist.version) for p in points if p.dist)


def distribution(
    place: Path, name: str, version: str, points: str | None, *, kind: str = "dist-info"
) -> None:
    directory = place / (
        f"{name}-{version}.dist-info" if kind == "dist-info" else f"{name}.egg-info"
    )
    directory.mkdir(parents=True)
    file = "METADATA" if kind == "dist-info" else "PKG-INFO"
    (directory / file).write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n\nName: no\n"
    )
    if points is not None:
        (directory / "entry_points.txt").write_text(points)


def on_path(monkeypatch: pytest.MonkeyPatch, *places: Path | str) -> None:
    monkeypatch.setattr(sys, "path", [*map(str, places)])
    importlib.invalidate_caches()


def test_all_groups_of_this_environment() -> None:
    groups = importlib.metadata.entry_points().groups
    assert "chrootfw" in groups or "console_scripts" in groups
    for group in groups:
        assert by_us(group) == by_importlib(group), group


@pytest.mark.parametrize(
    "points",
    [
        "[chrootfw]\na = m\n",
        "[chrootfw]\na=m:b.c\n# a comment\n\n  d = e [extra]\n[other]\nx = y\n",
        "[other]\nchrootfw = m\n",
        "[ chrootfw ]\na = m\n",
        "[chrootfw.instance]\na = m\n",
        "a = m\n[chrootfw]\n",
        "",
        None,
    ],
)
@pytest.mark.parametrize("kind", ["dist-info", "egg-info"])
def test_a_file_means_what_it_means_to_importlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: str | None, kind: str
) -> None:
    distribution(tmp_path / "one", "a_plugin", "1.2", points, kind=kind)
    on_path(monkeypatch, tmp_path / "one", tmp_path / "missing")
    for group in ("chrootfw", "chrootfw.instance", "other"):
        assert by_us(group) == by_importlib(group)


def test_the_first_of_a_name_on_the_path_counts_whatever_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "one", "A_plugin", "2.0", None)
    distribution(tmp_path / "two", "a.plugin", "1.0", "[chrootfw]\na = m\n")
    on_path(monkeypatch, tmp_path / "one", tmp_path / "two")
    assert by_us("chrootfw") == by_importlib("chrootfw") == []
    on_path(monkeypatch, tmp_path / "two", tmp_path / "one")
    assert by_us("chrootfw") == by_importlib("chrootfw") == [("a", "m", "a.plugin", "1.0")]


def test_the_working_directory_is_an_empty_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "here", "1.0", "[chrootfw]\na = m\n")
    monkeypatch.chdir(tmp_path)
    on_path(monkeypatch, "")
    assert by_us("chrootfw") == by_importlib("chrootfw") == [("a", "m", "here", "1.0")]


def test_what_is_in_a_zip_file_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "one", "zipped", "1.0", "[chrootfw]\na = m\n")
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "one").rglob("*"):
            file.write(path, path.relative_to(tmp_path / "one"))
    on_path(monkeypatch, archive)
    assert by_us("chrootfw") == by_importlib("chrootfw") == [("a", "m", "zipped", "1.0")]


def test_a_finder_of_somebodys_own_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "far", "found", "1.0", "[chrootfw]\na = m\n")

    class Finder(importlib.metadata.DistributionFinder):
        def find_spec(self, *_: object) -> None: ...

        def find_distributions(
            self, context: object = None
        ) -> list[importlib.metadata.Distribution]:
            return [importlib.metadata.PathDistribution(tmp_path / "far/found-1.0.dist-info")]

    on_path(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert by_us("chrootfw") == [("a", "m", "found", "1.0")]


@pytest.mark.parametrize("call", ["listdir", "open"])
def test_a_disk_that_fails_hides_no_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    distribution(tmp_path, "here", "1.0", "[chrootfw]\na = m\n")
    on_path(monkeypatch, tmp_path)

    def fails(*_arguments: object, **_how: object) -> None:
        raise OSError(5, "Input/output error")

    if call == "open":
        monkeypatch.setattr(entry_points, "open", fails, raising=False)
    else:
        monkeypatch.setattr(os, "listdir", fails)
    with pytest.raises(OSError, match="Input/output error"):
        entry_points.entry_points("chrootfw")


def test_it_loads_what_it_names() -> None:
    def point(value: str) -> object:
        return entry_points.EntryPoint("a", value, "", "").load()

    assert point("os") is os
    assert point("os.path : join") is os.path.join
    assert point("os:path.join [extra]") is os.path.join
    with pytest.raises(AttributeError):
        point("os:nothing")


def test_a_command_finds_its_plugins_without_importlib_metadata(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "CHROOTFW_RUN_DIR": str(tmp_path / "run"),
        "CHROOTFW_CONFIG_DIR": str(tmp_path / "etc"),
    }
    program = (
        "import sys; before = set(sys.modules); from chrootfw.cli import main as cli; cli.main(['stop', 'nothing']);"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert "chrootfw.hooks.entry_points" in done.stdout.split()
    assert not {"importlib.metadata", "email", "zipfile"} & set(done.stdout.split())


def test_what_comes_with_chrootfw_is_what_its_wheel_has() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).name for package in packages} == set(entry_points.OWN)
