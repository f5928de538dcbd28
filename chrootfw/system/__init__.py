"""The only code that talks to the kernel. Imports little: the quick verbs live here."""
