"""The metrics: each line is one of Prometheus' text format, each family is described once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import chrootfw
from chrootfw.cli import main, metrics

_SAMPLE = re.compile(
    r'([a-z_]+)\{([a-z]+="[A-Za-z0-9._-]+"(?:,[a-z]+="[A-Za-z0-9._-]+")*)\} ([0-9.e+-]+)'
)


def _info(name: str, state: str, **more: object) -> chrootfw.InstanceInfo:
    return chrootfw.InstanceInfo(name, chrootfw.InstanceState(state), f"/run/{name}", **more)


def test_the_metrics_of_two_instances() -> None:
    found = [
        _info(
            "web1",
            "running",
            processes=3,
            memory_bytes=10485760,
            cpu_seconds=0.42,
            started_at="2026-11-22T12:00:00+00:00",
        ),
        _info("db", "held", pending_undos=["x"]),
    ]
    described: list[str] = []
    samples = {}
    for line in metrics.lines(found):
        if line.startswith("# TYPE "):
            described.append(line.split()[2])
        elif not line.startswith("# HELP "):
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == described[-1], "the samples of a family stand together"
            samples[f"{sample[1]}{{{sample[2]}}}"] = float(sample[3])
    assert len(described) == len(set(described))
    assert samples['chrootfw_instances{state="running"}'] == 1
    assert samples['chrootfw_instance_state{name="db",state="held"}'] == 1
    assert samples['chrootfw_instance_state{name="db",state="running"}'] == 0
    assert samples['chrootfw_instance_memory_bytes{name="web1"}'] == 10485760
    assert samples['chrootfw_instance_cpu_seconds_total{name="web1"}'] == 0.42
    assert samples['chrootfw_instance_start_time_seconds{name="web1"}'] == 1795348800
    assert samples['chrootfw_instance_pending_undos{name="db"}'] == 1
    assert 'chrootfw_instance_processes{name="db"}' not in samples


def test_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("CHROOTFW_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "web1.toml").write_text("")
    assert main.main(["metrics"]) == 0
    assert 'chrootfw_instances{state="absent"} 1\n' in capsys.readouterr().out
    assert main.main(["metrics", "--json"]) == 2


def test_a_definition_that_is_not_valid_has_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHROOTFW_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("CHROOTFW_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "bad.toml").write_text("disk = /srv/bad.img\n")
    (tmp_path / "good.toml").write_text('disk = "/srv/good.img"\n')
    assert main.main(["metrics"]) == 0
    shown = capsys.readouterr().out
    assert 'chrootfw_instance_notes{name="bad"} 1\n' in shown
    assert 'chrootfw_instance_notes{name="good"} 0\n' in shown
    assert main.main(["info", "bad"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "chrootfw plan start bad" in shown
