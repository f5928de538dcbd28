"""What there is: start records, and the state of instances as the kernel has it."""
