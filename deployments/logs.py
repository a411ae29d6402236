"""Logging of the server's processes: to stderr, which Ray passes on to the terminal that started the server."""

from __future__ import annotations

import logging

OURS = ("deployments", "lightx2v")
FORMAT = "%(levelname)s %(asctime)s %(name)s -- %(message)s"


def configure_logging() -> None:
    """Logs from INFO on. Ray configures only its own loggers, and Python's default drops all below WARNING."""
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(FORMAT))
            logger.addHandler(handler)
