"""Command lines whose slips are told like any other bad input: in one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

from console.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError where argparse would print its usage; so do its subcommands.

    elsewhere: options of other scripts -> which.
    """

    elsewhere: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        """Of what argparse found, without the list of all options."""
        if message.startswith("unrecognized") and (known := [w for w in message.split() if w in self.elsewhere]):
            raise InputError(f"{known[0]} is no option of this script: {self.elsewhere[known[0]]}")
        raise InputError(f"{message.removeprefix('argument ')}; --help lists what can be given")
