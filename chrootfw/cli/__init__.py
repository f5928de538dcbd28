"""The command ``chrootfw``."""
