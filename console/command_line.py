"""Command lines whose errors are reported in one sentence, like any other bad input."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

from console.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError instead of printing its usage; so do its subcommands.

    elsewhere: option of another script -> a sentence that names that script.
    """

    elsewhere: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as an InputError."""
        if message.startswith("unrecognized") and (known := [w for w in message.split() if w in self.elsewhere]):
            raise InputError(f"{known[0]} is not an option of this script: {self.elsewhere[known[0]]}")
        hint = ""
        if message.startswith("unrecognized"):
            given = next((word for word in message.split() if word.startswith("--")), "")
            hint = nearest(given.partition("=")[0], self._option_string_actions) if given else ""
        raise InputError(f"{message.removeprefix('argument ')}{hint}; --help lists all options")
