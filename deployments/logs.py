"""What our processes say, and when, on the stderr that Ray passes on to whoever started the server."""

from __future__ import annotations

import logging

OURS = ("deployments", "lightx2v")
FORMAT = "%(levelname)s %(asctime)s %(name)s -- %(message)s"


def configure_logging() -> None:
    """From INFO on. Ray configures its own loggers only, and without any Python drops what is below WARNING."""
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(FORMAT))
            logger.addHandler(handler)
