"""chrootfw as Ganeti's chroot hypervisor: the class, the import hook and their installer."""
