"""``python -m chrootfw``, and the command ``chrootfw``."""


def run() -> int:
    """Load the command line and run it.

    Python's own answer to SIGINT, a traceback, would come while the modules are loaded: until then
    the signal ends the process.

    Returns:
        The exit status.
    """
    try:
        import signal
    except KeyboardInterrupt:
        return 130
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from chrootfw.cli import main

    return main.run()


if __name__ == "__main__":
    raise SystemExit(run())
