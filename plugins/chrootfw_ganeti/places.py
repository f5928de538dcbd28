"""Where things are on a node. Imported in Ganeti's processes, so it imports nothing."""

from __future__ import annotations

#: Ganeti's instances, apart from those that an administrator starts with chrootfw.
RUN_DIR = "/run/chrootfw-ganeti"
#: There are no definition files for them: Ganeti's configuration is their definition.
CONFIG_DIR = "/etc/chrootfw/ganeti.d"
#: Present: chrootfw is Ganeti's chroot hypervisor. It holds ``module:Class``.
MARKER = "/etc/chrootfw/ganeti-hypervisor"
#: chrootfw and its dependencies for Ganeti's processes, a directory for each installation; on no search path.
PACKAGES = "/usr/local/lib/chrootfw-ganeti"
#: A symbolic link in there to the one that is in use.
CURRENT = "current"
#: chrootfw's command line for Ganeti's instances.
COMMAND = "/usr/local/sbin/chrootfw-ganeti"
#: The names of the two files in the directory that Python looks through for ``.pth`` files.
PTH = "zz_chrootfw_ganeti.pth"
HOOK = "chrootfw_ganeti_hook.py"
#: What the marker says unless an administrator has another class.
CLASS = "chrootfw_ganeti.hypervisor:ChrootHypervisor"
#: Seconds to wait for another command that works on the same instance.
LOCK_TIMEOUT = 10.0
