"""Records of one image together: its tower, most of the work of a step, then sees the image once for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from data.readers import Source


class ByImage:
    """A numbered list of groups: records of one image, in the source's order, at most `most` together.

    With 1, group i is record i. InputError below that.
    """

    def __init__(self, source: Source, most: int):
        if most < 1:
            raise InputError(f"most_of_image must be at least 1, not {most}")
        self._source, self.paths = source, source.paths
        of_image: dict[str, list[int]] = {}
        for number in range(len(source)):
            of_image.setdefault(source.name(number), []).append(number)
        cut = [found[start : start + most] for found in of_image.values() for start in range(0, len(found), most)]
        self._groups = sorted(cut)

    def __len__(self) -> int:
        return len(self._groups)

    def records(self, index: int) -> list[int]:
        """The source's numbers of the group's records."""
        return self._groups[index]

    def name(self, index: int) -> str:
        """The image's name in the source."""
        return self._source.name(self._groups[index][0])

    def file(self, index: int) -> str | None:
        """The image file, None where it is none of its own."""
        return self._source.file(self._groups[index][0])
