"""Results of benchmarks: numbers with their bounds, printed at once and written as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """A number, and its upper bound (None: only reported)."""

    what: str
    value: float | str
    most: float | None = None

    @property
    def broken(self) -> bool:
        """Whether it exceeds its bound, or is NaN."""
        return self.most is not None and not float(self.value) <= self.most

    @property
    def shown(self) -> str:
        """The value as text."""
        return self.value if isinstance(self.value, str) else f"{self.value:.4g}"

    def __str__(self) -> str:
        bound = "" if self.most is None else f" (at most {self.most:g}{', BROKEN' if self.broken else ''})"
        return f"{self.what}: {self.shown}{bound}"


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option `--json`."""
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")


def report(findings: Iterable[Finding], file: str | None) -> None:
    """Print each finding as it is measured, and write all to `file`, if any."""
    found = []
    for finding in findings:
        print(finding, flush=True)
        found.append(asdict(finding))
    if file:
        Path(file).write_text(json.dumps(found, indent=1))
