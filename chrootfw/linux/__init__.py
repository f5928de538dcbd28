"""System calls and kernel files. No other package calls the kernel directly."""
