"""The paths of an installation on a node. Ganeti's processes import this, so it imports nothing."""

from __future__ import annotations

#: Run directory of Ganeti's instances, apart from those that an administrator starts with chrootfw.
RUN_DIR = "/run/chrootfw-ganeti"
#: No definition file is there: Ganeti's configuration defines its instances.
CONFIG_DIR = "/etc/chrootfw/ganeti.d"
#: If it exists, chrootfw is Ganeti's chroot hypervisor. It contains `module:Class`.
MARKER = "/etc/chrootfw/ganeti-hypervisor"
#: chrootfw and its dependencies for Ganeti's processes, one directory for each installation; on no
#: search path.
PACKAGES = "/usr/local/lib/chrootfw-ganeti"
#: A symbolic link in that directory, to the installation in use.
CURRENT = "current"
#: chrootfw's command line for Ganeti's instances.
COMMAND = "/usr/local/sbin/chrootfw-ganeti"
#: The directory of Ganeti's hooks, and the one that refuses to move a chroot to a node without
#: chrootfw.
HOOKS = "/etc/ganeti/hooks"
MOVE_HOOKS = {
    verb: f"{HOOKS}/instance-{verb}-pre.d/chrootfw" for verb in ("failover", "migrate", "move")
}
#: Start and restart the node daemon, on Debian with and without systemd units of Ganeti.
START = "/usr/lib/ganeti/daemon-util start ganeti-noded"
RESTART = f"/usr/lib/ganeti/daemon-util stop ganeti-noded; {START}"
#: The two files in the directory in which Python reads `.pth` files.
PTH = "zz_chrootfw_ganeti.pth"
HOOK = "chrootfw_ganeti_hook.py"
#: Content of the marker, unless an administrator has another class.
CLASS = "chrootfw_ganeti.hypervisor:ChrootHypervisor"
#: Directory in which Ganeti's own class for chroots mounts its instances.
STOCK_DIR = "/var/run/ganeti/chroot-hypervisor"
#: Beginning of a file that keeps Ganeti's own class from mounting an instance (`guard.py`).
GUARD = "chrootfw: "
#: Seconds to wait for another command that works on the same instance.
LOCK_TIMEOUT = 10.0
