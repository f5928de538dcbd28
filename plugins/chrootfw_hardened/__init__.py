"""Takes from the processes of an instance what lets root leave a chroot."""
