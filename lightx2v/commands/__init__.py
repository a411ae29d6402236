"""The commands of `python -m lightx2v`. Each is a module of this package with a `main` that takes the arguments after
its name and returns the exit status. It is imported when it runs."""

from collections.abc import Mapping

COMMANDS: Mapping[str, str] = {
    "generate": "make a picture or a video from a prompt",
    "fit": "forecast the memory and the seconds that a model takes on a card",
    "convert": "turn a configuration of LightX2V into one of this server",
    "key": "make an API key for a caller of the server",
    "check": "say whether a checkpoint can be served, and why not",
}
"""What each command does, by its name."""
