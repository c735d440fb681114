"""The Markdown pages of the repository, taken apart: fenced blocks, headings, links and code in backticks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

HIDDEN = {"cache", "runs", "output", "result", "wandb", "pruned_weights", "images"}  # written by the tools or users

FENCE = re.compile(r"^```(\S*)[ ]?(\S*)[ ]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is the content of (or ""), its text and first line's number."""

    language: str
    path: str
    text: str
    line: int


def pages() -> list[Path]:
    """Every page, the README first."""
    found = [path for path in REPOSITORY.rglob("*.md") if not _hidden(path.relative_to(REPOSITORY))]
    return sorted(found, key=lambda path: (len(path.parts), path))


def _hidden(path: Path) -> bool:
    return path.parts[0] in HIDDEN or any(part[0] == "." for part in path.parts)


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found[1], found[2], found[3], text[: found.start(3)].count("\n") + 1) for found in FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Targets of links and pictures that are not on the network."""
    return [target for target in LINK.findall(prose(text)) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What `#...` links to a page may name: its headings, as GitHub spells them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose(text))}


def inline_code(text: str) -> list[str]:
    """What stands in backticks, once each."""
    return list(dict.fromkeys(INLINE.findall(prose(text))))


def commands(block: Block) -> list[str]:
    """The commands of a block, without comments; continued lines are joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
