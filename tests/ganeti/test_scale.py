"""How a cluster grows: the figures for docs/how-to/scale-out.md. A small sample; with ``--whole`` as many as the page tells."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from chroots import TIMEOUT, Chroot, Site


@pytest.mark.version("3.1")
def test_figures(site: Site, request: pytest.FixtureRequest, figure: Callable[[str], None]) -> None:
    for node in site.nodes:  # it was removed at last
        node.run("chrootfw", "ganeti", "install")
        node.restart_noded()
    whole = request.config.getoption("--whole")
    jobs, count = (200, 30) if whole else (20, 3)
    version = site.cluster.version
    site.cluster.master.write(
        "/tmp/jobs", json.dumps([{"OP_ID": "OP_TEST_DELAY", "duration": 0, "on_nodes": []}])
    )

    seconds = _seconds(
        lambda: site.gnt("gnt-debug", "submit-job", f"--job-repeat={jobs}", "/tmp/jobs")
    )
    figure(f"{version}: {jobs} jobs that do nothing: {jobs / seconds:.1f} a second")

    chroots = [Chroot(site, f"many{number}") for number in range(count)]
    begin = time.monotonic()
    for number, _ in enumerate(chroots):
        site.add(f"many{number}", site.nodes[number % len(site.nodes)], "--no-start", size="16M")
    figure(
        f"{version}: {count} instances added one after the other: {(time.monotonic() - begin) / count:.2f} s each"
    )
    names = [chroot.name for chroot in chroots]
    try:
        for verb in ("start", "stop"):
            options = [f"--timeout={TIMEOUT}"] if verb == "stop" else []
            seconds = _seconds(
                lambda: site.gnt("gnt-instance", verb, *options, "--force-multiple", *names)
            )
            figure(
                f"{version}: {verb} of {count} at once, on {len(site.nodes)} nodes: {count / seconds:.2f} a second"
            )
            if verb == "start":
                shown = site.gnt(
                    "gnt-instance", "list", "--no-headers", "--output=status", *names
                ).split()
                assert shown == ["running"] * count
                seconds = _seconds(
                    lambda: site.gnt("gnt-instance", "list", "--output=name,status,oper_ram")
                )
                figure(f"{version}: gnt-instance list with memory of {count}: {seconds:.2f} s")
                seconds = _seconds(lambda: site.nodes[1].run("chrootfw-ganeti", "list", "--json"))
                figure(
                    f"{version}: one node asked for its {count // len(site.nodes)} instances: {seconds:.2f} s"
                )
        assert not any(chroot.mounted_on() for chroot in chroots)
    finally:
        for chroot in chroots:
            chroot.remove()


def _seconds(action: Callable[[], object]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin
