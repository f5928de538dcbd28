"""Take from an instance's processes what lets the root user leave a chroot."""
