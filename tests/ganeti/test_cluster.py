"""What an administrator does with a cluster, with Ganeti's own class for chroots and with chrootfw's.

What is asserted is what the kernel shows: processes with their root on the instance's disk, mounts of that disk on
each node, loop devices over it; and what Ganeti says of it. The tests stand in the order in which they are run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import hypervisors
import page
import prepare
import pytest
import table
from chroots import DAEMONS, TIMEOUT, Chroot, Site
from cluster import DOMAIN, Failed, Node
from kernelview import wait_until
from table import TABLE, Results

ALL = (hypervisors.STOCK, hypervisors.REPAIRED, hypervisors.CHROOTFW)
row = pytest.mark.row

#: A kernel without SysRq has no such file, and Ganeti then takes /proc for not mounted.
_NO_SYSRQ = () if Path("/proc/sysrq-trigger").exists() else ("--ignore-errors=ENODESETUP",)


# -- one instance -------------------------------------------------------------------------------------------


@row("Add an instance; it is started")
def test_add(site: Site) -> None:
    node = site.nodes[1]
    with site.measured():
        site.add("web1", node).must_run_on(node)


@row("Show its memory and CPUs")
def test_list(site: Site) -> None:
    web1 = site.running()
    with site.measured():
        memory, vcpus, state = web1.shows("oper_ram", "oper_vcpus", "status")
    assert state == "running"
    assert re.fullmatch(r"[1-9]\d*", memory), f"its memory is shown as {memory}"
    assert vcpus == "1", f"it is shown with {vcpus} CPUs"


@row("Console")
def test_console(site: Site) -> None:
    web1 = site.running()
    with site.measured():
        seen = site.cluster.master.type(
            ["gnt-instance", "console", web1.name],
            "echo $((6 * 7)) in $(cat /etc/hostname)\nexit\n",
        )
    assert f"42 in {web1.name}" in seen, f"the console shows {seen!r}"


@row("Run one command inside")
def test_exec(site: Site) -> None:
    web1 = site.running()
    if site.kind == hypervisors.CHROOTFW:
        said = web1.primary.run(
            "chrootfw-ganeti", "exec", web1.name, "--", "/bin/cat", "/etc/hostname"
        )
    else:  # there is no command for it; what the console does is the next best
        console = web1.gnt("console", "--show-cmd").strip()
        said = site.gnt("sh", "-c", console, stdin="cat /etc/hostname\nexit\n")
    assert web1.name in [line.strip() for line in said.splitlines()], f"it says {said!r}"


@row("Stop")
def test_stop(site: Site) -> None:
    web1 = site.running()
    with site.measured():
        web1.gnt("stop", f"--timeout={TIMEOUT}")
    web1.must_be_down()


@row("Start")
def test_start(site: Site) -> None:
    web1 = site.running()
    web1.gnt("stop", f"--timeout={TIMEOUT}")
    with site.measured():
        web1.gnt("start")
    web1.must_run_on(web1.primary)
    assert web1.calls(web1.primary)[-2:] == ["/ganeti-chroot stop", "/ganeti-chroot start"]


def _reboots(site: Site, kind: str) -> None:
    web1 = site.running()
    node = web1.primary
    before = set(web1.processes_on(node))
    with site.measured():
        web1.gnt("reboot", f"--type={kind}", f"--shutdown-timeout={TIMEOUT}")
    web1.must_run_on(node)
    assert not before & set(web1.processes_on(node)), "daemons of before the reboot still run"


@row("Reboot, soft")
def test_reboot_soft(site: Site) -> None:
    _reboots(site, "soft")


@row("Reboot, hard")
def test_reboot_hard(site: Site) -> None:
    _reboots(site, "hard")


@row("Reboot, full")
def test_reboot_full(site: Site) -> None:
    _reboots(site, "full")


@row("Another init script, from the next start")
def test_modify(site: Site) -> None:
    web1 = site.running()
    node = web1.primary
    web1.gnt("modify", "--hypervisor-parameters=init_script=/another-init")
    try:
        web1.gnt("reboot", "--type=hard", f"--shutdown-timeout={TIMEOUT}")
        web1.must_run_on(node)
        assert web1.calls(node)[-1] == "/another-init start"
        assert web1.calls(node)[-2].endswith(" stop"), "it was not asked to stop"
    finally:
        web1.gnt("modify", "--hypervisor-parameters=init_script=default")


@row("Stop daemons that ignore TERM")
def test_stubborn(site: Site) -> None:
    web1 = site.running()
    web1.write("/etc/stubborn", "", web1.primary)
    web1.kill(web1.primary)
    web1.clear_away()
    web1.gnt("start")
    web1.must_run_on(web1.primary)
    os.unlink(web1._inside("/etc/stubborn", web1.primary))
    with site.measured():
        web1.gnt("stop", "--timeout=2")
    web1.must_be_down()


@row("Start an instance again whose daemons died (watcher)")
def test_watcher(site: Site) -> None:
    web1 = site.running()
    node = web1.primary
    web1.kill(node)
    assert web1.shows("status") == ["ERROR_down"]
    with site.measured():
        site.gnt("ganeti-watcher")
        wait_until(lambda: len(web1.processes_on(node)) == DAEMONS, "the watcher has started it")
    wait_until(lambda: web1.shows("status") == ["running"], "Ganeti knows it")
    web1.must_run_on(node)


# -- several nodes ------------------------------------------------------------------------------------------


@row("Failover")
def test_failover(site: Site) -> None:
    web1 = site.running()
    target = site.spare(web1.primary)
    with site.measured():
        web1.gnt(
            "failover", "--force", f"--shutdown-timeout={TIMEOUT}", f"--target-node={target.name}"
        )
    web1.must_run_on(target)


@row("Migrate, cold")
def test_migrate(site: Site) -> None:
    web1 = site.running()
    target = site.spare(web1.primary)
    with site.measured():
        web1.gnt("migrate", "--force", "--non-live", f"--target-node={target.name}")
    web1.must_run_on(target)


@row("Failover with a mount left inside: the disk is on one node", kinds=ALL)
def test_sub_mount(site: Site) -> None:
    """The double mount of the original: its root is given by a symbolic link, so it finds no mount below."""
    web1 = _fresh(site, "inside")
    node, target = web1.primary, site.spare(web1.primary)
    pid = next(iter(web1.processes_on(node)))
    place = web1.mounts_on(node)[0].target.decode()
    node.run("mount", "-t", "tmpfs", "inside", f"{place}/tmp")
    try:
        web1.gnt(
            "failover", "--force", f"--shutdown-timeout={TIMEOUT}", f"--target-node={target.name}"
        )
        assert web1.mounted_on() == [target], f"the same ext4 is mounted on {web1.mounted_on()}"
        web1.must_run_on(target)
        assert not Path(f"/proc/{pid}/root").exists() or pid not in web1.processes_on(node)
    finally:
        web1.clear_away()
        web1.remove()


@row("A stop that fails leaves the disk with its node", kinds=ALL)
def test_failing_stop(site: Site) -> None:
    """The disk is held from outside the instance, by a bind mount: no stop can free it."""
    web1 = _fresh(site, "held")
    node, target = web1.primary, site.spare(web1.primary)
    place = web1.mounts_on(node)[0].target.decode()
    node.run("mkdir", "-p", "/mnt/held")
    node.run("mount", "--bind", place, "/mnt/held")
    try:
        refused = ""
        try:
            web1.gnt(
                "failover",
                "--force",
                f"--shutdown-timeout={TIMEOUT}",
                f"--target-node={target.name}",
            )
        except Failed as failed:
            refused = failed.output
        assert web1.mounted_on() == [node], f"the same ext4 is mounted on {web1.mounted_on()}"
        assert refused, "the failover went on"
        assert web1.primary is node, "Ganeti says that it is elsewhere"
        node.run("umount", "/mnt/held")
        web1.gnt(
            "failover", "--force", f"--shutdown-timeout={TIMEOUT}", f"--target-node={target.name}"
        )
        web1.must_run_on(target)
        assert "/mnt/held" in refused, f"nobody says who holds it: {refused}"
    finally:
        node.run("umount", "/mnt/held", check=False)
        web1.clear_away()
        web1.remove()


def _fresh(site: Site, name: str) -> Chroot:
    """An instance of its own, for what may damage its disk."""
    site.all_on()
    return site.add(name, site.spare(site.cluster.master))


@row("A node dies: its instance is recovered on another")
def test_node_dies(site: Site) -> None:
    web1 = _away_from_the_master(site)
    dead = web1.primary
    target = site.spare(dead)
    dead.power_off()
    site.gnt("gnt-node", "modify", "--offline=yes", dead.name)
    with site.measured():
        web1.gnt("failover", "--force", f"--target-node={target.name}")
    web1.must_run_on(target)


@row("The node comes back: what runs elsewhere is not started")
def test_node_comes_back(site: Site) -> None:
    dead = next(
        (node for node in site.nodes if not node.pid), None
    )  # of the test before, where that went well
    web1 = Chroot(site, "web1")
    assert dead, "it could not be recovered on another"
    target = web1.primary
    dead.power_on()
    with site.measured():
        dead.start_ganeti()
        dead.run("ganeti-watcher", check=False)  # what cron does; it is no master's
    web1.must_run_on(target)
    with site.measured():
        site.gnt("gnt-node", "add", "--readd", "--no-ssh-key-check", dead.name)
    site.gnt("ganeti-watcher")
    web1.must_run_on(target)
    assert not web1.processes_on(dead)


def _away_from_the_master(site: Site) -> Chroot:
    web1 = site.running()
    if web1.primary is site.cluster.master:
        web1.gnt("failover", "--force", f"--target-node={site.spare(web1.primary).name}")
    return web1


@row("The master dies: another takes over, and manages")
def test_master_failover(site: Site) -> None:
    web1 = _away_from_the_master(site)
    dead = site.cluster.master
    heir = site.nodes[2]
    if web1.primary is heir:
        web1.gnt("failover", "--force", f"--target-node={site.spare(heir, dead).name}")
    dead.power_off()
    try:
        with site.measured():
            heir.run("gnt-cluster", "master-failover")
        site.cluster.master = heir
        assert site.gnt("gnt-cluster", "getmaster").strip() == heir.name
        site.gnt("gnt-node", "modify", "--offline=yes", "--force", dead.name)
        web1.gnt("reboot", "--type=hard", f"--shutdown-timeout={TIMEOUT}")
        web1.must_run_on(web1.primary)
    finally:
        site.all_on()


# -- the whole ----------------------------------------------------------------------------------------------


@row("Burnin (ganeti-burnin)")
def test_burnin(site: Site) -> None:
    site.all_on()
    name = f"burn.{DOMAIN}"
    command = [
        "/usr/lib/ganeti/tools/burnin", "--hypervisor=chroot", "--os=busybox", "--disk-template=sharedfile",
        "--disk-size=32M", "--disk-growth=0", "--mem-size=128M", "--no-nics", "--no-replace1", "--no-replace2",
    ]  # fmt: skip
    command += ["--no-add-disks"]  # it takes a disk from the running instance, which needs hotplug
    if site.cluster.version == "3.0.2":  # later ones look neither up unless told to
        command += ["--no-name-check", "--no-ip-check"]
    try:
        with site.measured():
            site.gnt(*command, name)
    finally:
        burn = Chroot(site, "burn")
        if burn.exists():
            burn.remove()


@row("RAPI shows it running")
def test_rapi(site: Site) -> None:
    web1 = site.running()
    master = site.cluster.master
    address = f"https://127.0.0.1:5080/2/instances/{web1.name}"
    ask = (
        "import ssl, urllib.request as u;"
        f"r = u.Request('{address}', headers={{'Authorization': 'Basic dGVzdHM6c2VjcmV0'}});"  # tests:secret
        "print(u.urlopen(r, context=ssl._create_unverified_context()).read().decode())"
    )
    with site.measured():
        shown = json.loads(master.run("python3", "-c", ask))
    assert shown["status"] == "running"
    assert shown["oper_ram"] > 0, "without memory"


@row("`gnt-cluster verify` has nothing to say")
def test_verify(site: Site) -> None:
    site.running()
    failure = None
    try:
        with site.measured():
            said = site.gnt("gnt-cluster", "verify", *_NO_SYSRQ)
    except Failed as failed:
        failure, said = failed, failed.output
    wrong = [
        line
        for line in said.splitlines()
        if "ERROR" in line or ("WARNING" in line and "procfs" not in line)
    ]
    assert not wrong, "; ".join(line.partition("  - ")[2] for line in wrong)
    if failure:
        raise failure


@row("A Debian with a web server: add, serve, failover, serve, stop")
def test_debian(site: Site) -> None:
    site.all_on()
    _bring_archive(site)
    visitor = site.cluster.master
    site1 = site.add("site1", site.spare(visitor), os="debian", size="400M")
    try:
        assert _page(visitor, site1) == f"served by {site1.name}\n"
        before, target = site1.primary, site.spare(site1.primary, visitor)
        site1.gnt(
            "failover", "--force", f"--shutdown-timeout={TIMEOUT}", f"--target-node={target.name}"
        )
        assert site1.mounted_on() == [target]
        assert not site1.processes_on(before)
        assert _page(visitor, site1) == f"served by {site1.name}\n"
        site1.gnt("stop", f"--timeout={TIMEOUT}")
        site1.must_be_down()
        with pytest.raises(Failed):
            _page(visitor, site1)
    finally:
        site1.remove()


def _bring_archive(site: Site) -> None:
    """What mmdebstrap made, where the OS definition looks for it."""
    shared = site.cluster.ground.files / "shared/debian.tar"
    if not shared.exists():
        site.cluster.ground.run(
            "cp", str(prepare.debian_system()), f"{site.cluster.shared}/debian.tar"
        )
    for node in site.nodes:
        archive = node.path("/srv/ganeti/debian.tar")
        if not archive.is_symlink():
            archive.symlink_to("/srv/ganeti/shared-file-storage/debian.tar")


def _page(visitor: Node, site1: Chroot) -> str:
    visitor.run("ip", "neigh", "flush", "all")  # the address moves with the instance
    fetch = f"import urllib.request as u; print(u.urlopen('http://{site1.name}:8080/', timeout=60).read().decode(), end='')"
    return visitor.run("python3", "-c", fetch)


@row("Remove: nothing is left on the shared disk")
def test_remove(site: Site) -> None:
    web1 = site.running()
    file = web1.file
    with site.measured():
        web1.gnt("remove", "--force", f"--shutdown-timeout={TIMEOUT}")
    assert not list((site.cluster.ground.files / "shared").rglob(file.name))
    assert not web1.exists()


# -- chrootfw's own, and the tests themselves ---------------------------------------------------------------


def test_own_parameters(site: Site) -> None:
    """chrootfw's own parameters, in the name that Ganeti has for others' own."""
    web1 = site.running()
    with pytest.raises(Failed, match="did you mean 'grace'"):
        web1.gnt("modify", "--hypervisor-parameters=extra_config=grcae:3")
    web1.gnt("modify", "--hypervisor-parameters=extra_config=grace:3;binds:/srv:/mnt:ro")
    try:
        web1.gnt("reboot", "--type=hard", f"--shutdown-timeout={TIMEOUT}")
        assert len(web1.processes_on(web1.primary)) == DAEMONS
        shown = json.loads(web1.primary.run("chrootfw-ganeti", "info", "--json", web1.name))
        assert any(mount["target"].endswith("/mnt") for mount in shown["instances"][0]["mounts"]), (
            shown
        )
    finally:
        web1.gnt("modify", "--hypervisor-parameters=extra_config=default")
        web1.gnt("reboot", "--type=hard", f"--shutdown-timeout={TIMEOUT}")


@pytest.mark.first_version
def test_a_crash_is_no_shutdown_by_its_user(site: Site) -> None:
    """Where users may shut their instances down from inside, one that crashed is started again."""
    web1 = site.running()
    node = web1.primary
    site.gnt("gnt-cluster", "modify", "--user-shutdown=yes")
    try:
        web1.kill(node)
        assert web1.shows("status") == ["ERROR_down"]
        site.gnt("ganeti-watcher")
        wait_until(lambda: web1.shows("status") == ["running"], "the watcher has started it")
        web1.must_run_on(node)
    finally:
        site.gnt("gnt-cluster", "modify", "--user-shutdown=no")


@pytest.mark.first_version
def test_a_node_without_chrootfw(site: Site) -> None:
    """`gnt-cluster verify` names it, and nothing is moved there: Ganeti's own class could not stop it again."""
    web1 = site.running()
    node, bare = web1.primary, site.spare(web1.primary, site.cluster.master)
    bare.run("chrootfw", "ganeti", "remove")
    bare.restart_noded()
    try:
        said = site.gnt("gnt-cluster", "verify", *_NO_SYSRQ, check=False)
        assert re.search(rf"ganeti-hypervisor is optional.*not found on {bare}", said), said
        for verb, *options in (("migrate", "--non-live"), ("failover",)):
            with pytest.raises(Failed, match=f"{bare} does not use chrootfw"):
                web1.gnt(verb, "--force", *options, f"--target-node={bare.name}")
            web1.must_run_on(node)
        bare.run("chrootfw", "ganeti", "install")  # its daemon does not know yet
        with pytest.raises(Failed, match=f"{bare} does not use chrootfw"):
            web1.gnt("migrate", "--force", "--non-live", f"--target-node={bare.name}")
        web1.must_run_on(node)
    finally:
        bare.run("chrootfw", "ganeti", "install")
        bare.restart_noded()


def test_start_paused(site: Site) -> None:
    """Mounted, without its daemons, and up to Ganeti: the watcher leaves it alone. A reboot starts them."""
    web1 = site.running()
    node = web1.primary
    web1.gnt("stop", f"--timeout={TIMEOUT}")
    web1.gnt("start", "--paused")
    assert web1.mounted_on() == [node]
    assert not web1.processes_on(node)
    assert web1.shows("status") == ["running"]
    site.gnt("ganeti-watcher")
    assert not web1.processes_on(node)
    web1.gnt("reboot", "--type=soft")
    web1.must_run_on(node)


def test_a_new_python_on_a_node(site: Site) -> None:
    """As after an upgrade of Debian: Ganeti finds its own class again, until chrootfw is installed for that Python."""
    web1 = site.running()
    node = web1.primary
    before = web1.processes_on(node)
    old, new = (
        f"/usr/local/lib/python{version}/dist-packages" for version in (node.python, "3.10")
    )
    files = f"{old}/zz_chrootfw_ganeti.pth {old}/chrootfw_ganeti_hook.py"
    node.run("sh", "-c", f"mkdir -p {new} && mv {files} {new}")
    node.restart_noded()
    node_class = (
        "from ganeti import hypervisor as h; print(h.GetHypervisorClass('chroot').__module__)"
    )
    path = f"import sys; sys.path.insert(0, '/usr/share/ganeti/default'); {node_class}"
    assert node.run("python3", "-c", path).strip() == "ganeti.hypervisor.hv_chroot"
    try:
        site.cluster.gnt("ganeti-watcher", check=False)
        wait_until(
            lambda: not site.gnt("gnt-job", "list", "--running", "--no-headers").strip(),
            "no job runs",
            seconds=180,
        )
        assert web1.mounted_on() == [node]
        assert web1.processes_on(node) == before, (
            "the disk was mounted or its daemons were started a second time"
        )
    finally:
        said = node.run("chrootfw-ganeti", "ganeti", "install")
        node.restart_noded()
    assert "restart ganeti-noded" in said, said
    wait_until(lambda: web1.shows("status") == ["running"], "Ganeti knows it again")
    web1.gnt("stop", f"--timeout={TIMEOUT}")
    web1.must_be_down()


def test_status_and_dpkg(site: Site) -> None:
    """The node daemon uses chrootfw's class, and no file of a package has changed."""
    for node in site.nodes:
        said = node.run("chrootfw", "ganeti", "status")
        assert "chrootfw_ganeti.hypervisor:ChrootHypervisor" in said, said
        assert site.cluster.version in said, said
        changed = [
            line
            for line in node.run("dpkg", "--verify", check=False).splitlines()
            if "ganeti" in line
        ]
        assert not changed, changed


def test_removed(site: Site) -> None:
    """The last of a site: refused while an instance is there; then Ganeti's own class is back, and works on the cluster."""
    web1 = site.running()
    web1.gnt("modify", "--hypervisor-parameters=extra_config=grace:3")
    site.gnt("gnt-os", "modify", "--hypervisor-parameters=chroot:extra_config=grace:9", "busybox")
    with pytest.raises(Failed, match=web1.name):
        web1.primary.run("chrootfw", "ganeti", "remove")
    web1.gnt("stop", f"--timeout={TIMEOUT}")
    others = [node for node in site.nodes if node is not site.cluster.master]
    with pytest.raises(Failed, match="migration_mode of the cluster"):
        site.gnt("chrootfw", "ganeti", "remove")
    with pytest.raises(Failed, match=f"run it on {site.cluster.master}"):
        others[0].run("chrootfw", "ganeti", "remove", "--cluster")
    said = site.gnt("chrootfw", "ganeti", "remove", "--cluster")
    for reset in (
        "migration_mode of the cluster: 'non-live'",
        "extra_config of the operating system busybox: 'grace:9'",
        f"extra_config of {web1.name}: 'grace:3'",
    ):
        assert f"reset {reset}" in said, said
    for node in others:
        node.run("chrootfw", "ganeti", "remove")
    for node in site.nodes:
        assert "not installed" in node.run("chrootfw", "ganeti", "status", check=False)
        node.restart_noded()
        assert not list(node.path("/usr/local/lib").glob("**/*chrootfw*"))
    script = "from ganeti import hypervisor as h; print(h.GetHypervisorClass('chroot').__module__)"
    path = f"import sys; sys.path.insert(0, '/usr/share/ganeti/default'); {script}"
    assert web1.primary.run("python3", "-c", path).strip() == "ganeti.hypervisor.hv_chroot"
    said = site.gnt("gnt-cluster", "verify", *_NO_SYSRQ, check=False)
    assert "Verifying hypervisor parameters" in said, said
    assert "is not supported" not in said, said
    later = site.add("later", site.nodes[1], "--no-start")
    later.gnt("remove", "--force", "--ignore-failures")  # 3.0.2 cannot stop what does not run
    web1.gnt("modify", "--hypervisor-parameters=init_script=/another-init")


def test_nothing_can_leave(site: Site) -> None:
    """The switch has the nodes' cards and no other; no node knows a way out."""
    links = json.loads(subprocess.check_output(
        ["nsenter", "--target", str(site.cluster.ground.pid), "--net", "ip", "-json", "link"]
    ))  # fmt: skip
    assert sorted(link["ifname"] for link in links) == [
        "lo",
        *(f"port{n.number}" for n in site.nodes),
        "switch",
    ]
    for node in site.cluster.living:
        assert json.loads(node.run("ip", "-json", "route", "show", "default")) == []


@pytest.mark.first_version
def test_the_page(site: Site) -> None:
    """The blocks of docs/how-to/scale-out.md, in order, on a cluster from which chrootfw was removed before."""
    _bring_archive(site)
    named = {node.name: [node] for node in site.nodes}
    for block in page.blocks():
        if block.when in ("needs a network", "an empty machine"):
            continue  # not here; or done when the cluster was made
        if block.when:
            dead = re.fullmatch(r"when (\S+) is dead", block.when)
            assert dead, (
                f"the page says when to run a block in words that are not understood: {block.when}"
            )
            site.cluster.node(dead[1]).power_off()
        text = block.text
        if _NO_SYSRQ:
            text = text.replace("gnt-cluster verify", f"gnt-cluster verify {' '.join(_NO_SYSRQ)}")
        for node in {"every node": site.nodes, "the master": [site.cluster.master], **named}[
            block.place
        ]:
            node.run("sh", "-euc", text)
    site1 = Chroot(site, "site1")
    assert _page(site.cluster.master, site1) == f"served by {site1.name}\n"
    assert site1.mounted_on() == [site1.primary]
    site1.remove()


def test_the_table(site: Site, results: Results, request: pytest.FixtureRequest) -> None:
    """What docs/reference/ganeti-table.md says of each row is what became of it in this run."""
    if request.config.getoption("--table"):
        return  # it is being written
    said = table.works(TABLE.read_text(encoding="utf-8"))
    version = site.cluster.version
    shown = {
        key: outcome.works
        for key, outcome in results.items()
        if key[1] == version and key[2] != hypervisors.REPAIRED
    }
    assert {key: said.get(key) for key in shown} == shown
