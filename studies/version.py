"""What results are made with: two of different versions are never mixed.

The version is a number of our own and the major versions of the packages that compute. The commit is recorded with
each result for information; it is no part of the version, or every comment would throw away hours of work.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

RESULTS_VERSION = 2
"""Raised by hand where a change of the code makes the same run give other numbers, beyond the rounding that another
minor version of torch changes, too.

2: where candidates are re-ranked, those that are not follow similarity, which changes R@10 and the mean recalls; and
items carry their pictures. The committed results of version 1 were corrected to what this version gives.
"""

COMPUTING = ("torch", "torchvision", "transformers", "timm", "lightning", "numpy")

REPOSITORY = Path(__file__).parent.parent


@functools.cache
def packages() -> dict[str, str]:
    """Python and the packages that compute -> version; those that are not there are left out."""
    found = {"python": platform.python_version()}
    for name in COMPUTING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version() -> dict[str, str]:
    """What two results must have in common to stand in one table."""
    majors = {name: number.split(".")[0] for name, number in packages().items() if name != "python"}
    return {"results": str(RESULTS_VERSION), **majors}


def difference(found: dict[str, str]) -> str:
    """A version in words, as far as it differs from today's."""
    now = version()
    other = [f"{name} {found.get(name, 'none')}" for name in {**now, **found} if found.get(name) != now.get(name)]
    return ", ".join(other) or "today's"


@functools.cache
def commit() -> str | None:
    """The commit of the code, with `+changes` where its files differ; None outside a git checkout.

    Results are no code: a grid writes them while it runs.
    """
    found = _git("rev-parse", "HEAD")
    if not found:
        return None
    return found + ("+changes" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
