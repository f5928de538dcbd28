"""chrootfw as Ganeti's chroot hypervisor: the class, the hook that puts it in place, and their installer."""
