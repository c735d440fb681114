"""Command lines whose slips are told like any other bad input: in one sentence."""

from __future__ import annotations

import argparse
from typing import NoReturn

from console.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError where argparse would print its usage; so do its subcommands."""

    def error(self, message: str) -> NoReturn:
        """Of what argparse found, without the list of all options."""
        raise InputError(f"{message.removeprefix('argument ')}; --help lists what can be given")
