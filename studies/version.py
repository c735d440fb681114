"""The version of results: results of different versions are never mixed.

It is a number of our own and the major versions of the packages that compute. Each result also records the commit,
which is not part of the version: otherwise every changed comment would invalidate hours of computation.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

RESULTS_VERSION = 2
"""Raised by hand when a change of the code changes a run's numbers by more than another minor version of torch would.

2: candidates that are not re-ranked follow in the order of similarity, which changes R@10 and the mean recalls; items
have their pictures. The committed results of version 1 were corrected to those of this version.
"""

COMPUTING = ("torch", "torchvision", "transformers", "timm", "lightning", "numpy")

REPOSITORY = Path(__file__).parent.parent


@functools.cache
def packages() -> dict[str, str]:
    """Python and the installed packages that compute -> version."""
    found = {"python": platform.python_version()}
    for name in COMPUTING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version() -> dict[str, str]:
    """What two results must have in common to be in one table."""
    majors = {name: number.split(".")[0] for name, number in packages().items() if name != "python"}
    return {"results": str(RESULTS_VERSION), **majors}


def difference(found: dict[str, str]) -> str:
    """The differences of a version from the current one, in words."""
    now = version()
    other = [f"{name} {found.get(name, 'none')}" for name in {**now, **found} if found.get(name) != now.get(name)]
    return ", ".join(other) or "today's"


@functools.cache
def commit() -> str | None:
    """The commit of the code, with `+changes` if tracked files differ from it; None outside a git checkout.

    results/ does not count, since a grid writes there while it runs.
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
