"""What chrootfw says to ``logging``, by the logger ``chrootfw``: steps as debug messages, warnings and blame as warnings.

``logging`` takes as long to import as a stop to do; whoever listens has imported it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

_shown: list[bool] = []


def shown_elsewhere() -> None:
    """The program shows every event itself: without handlers nothing is printed, as logging would do with warnings."""
    _shown.append(True)


def debug(text: str, *values: object) -> None:
    """Tell who listens."""
    if "logging" in sys.modules:
        _logger().debug(text, *values)


def warning(text: str, *values: object) -> None:
    """Tell who listens; without handlers it is printed on stderr."""
    _logger().warning(text, *values)


def error(text: str, *values: object) -> None:
    """The same, of what is worse."""
    _logger().error(text, *values)


def exception(text: str) -> None:
    """The same, with the exception that is being handled."""
    _logger().exception(text)


def _logger() -> logging.Logger:
    import logging

    logger = logging.getLogger("chrootfw")
    if _shown and not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger
