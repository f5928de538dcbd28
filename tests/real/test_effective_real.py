"""What ``show`` says of an instance that is running: what it was started with, not what is defined now."""

from __future__ import annotations

from typing import Any

from driving import Chroot, Result


def shown(answer: Result) -> dict[str, tuple[Any, str, int | None]]:
    return {
        each["name"]: (each["value"], each["source"], each["line"])
        for each in answer.json()["parameters"]
    }


def test_a_running_instance_shows_its_start(web1: Chroot) -> None:
    web1.define(grace=5, nice=3)
    assert shown(web1.cli("show", "--json"))["grace"] == (5, "definition", 2)
    web1.cli("start", "--set", "nice=4", "--set", "oom_score_adj=7")
    answer = web1.cli("show", "--json")
    assert (answer.json()["state"], answer.json()["definition_changed"]) == ("running", False)
    found = shown(answer)
    assert found["disk"] == (str(web1.disk), "definition", 1)
    assert found["grace"] == (5, "definition", 2)
    assert found["nice"] == (4, "start", None)
    assert found["oom_score_adj"] == (7, "start", None)
    assert found["stop_wait"] == (0, "default", None)

    web1.define(grace=6)
    answer = web1.cli("show")
    assert "changed since the start" in answer.stderr
    assert shown(web1.cli("show", "--json"))["grace"] == (5, "definition", 2)
    (row,) = [line for line in answer.stdout.splitlines() if line.startswith("nice ")]
    assert row.split() == ["nice", "4", "the", "start"]

    web1.stop()
    assert shown(web1.cli("show", "--json"))["grace"] == (6, "definition", 2)


def test_an_instance_without_a_definition(web1: Chroot) -> None:
    web1.definition.unlink()
    web1.cli("start", "--disk", str(web1.disk), "--no-init")
    answer = web1.cli("show", "--json")
    assert answer.json()["definition"] is None
    found = shown(answer)
    assert found["disk"] == (str(web1.disk), "start", None)
    assert found["init_script"] == (False, "start", None)
    assert found["grace"][1] == "default"
    web1.cli("cleanup")
    web1.cli("show", expect=3)


def test_a_lost_record(web1: Chroot) -> None:
    web1.start()
    (web1.root.parent / "record.json").unlink()
    answer = web1.cli("show", "--json")
    assert "record of the start of web1 is lost" in answer.stderr
    assert shown(answer)["disk"] == (str(web1.disk), "definition", 1)
    web1.stop()
