"""Visual prompts, such as a trained frame around pictures, in front of a classifier.

Jin et al., "Visual Prompting Upgrades Neural Network Sparsification: A Data-Model Perspective", AAAI 2025. The kinds of
prompt are those of Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale Models", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from console.errors import InputError, nearest
from models.label_mapping import LabelMapping
from models.tasks import Classifier

KINDS = ("pad", "fix", "random", "expand", "none")


class VisualPrompt(nn.Module):
    """v(x) = normalise(clamp(pad(x) + h(P) M, 0, 1)) of pictures x in [0, 1]; P, zero at first, is learnt where M is 1.

    | kind | M | h |
    |---|---|---|
    | pad | a frame of `width` pixels | identity |
    | fix | a square of side `square` at the top left | sigmoid |
    | random | that square at a random place of each pass in train mode, in the middle otherwise | sigmoid |
    | expand | all around the picture, which is smaller than the canvas | sigmoid |
    | none | nowhere: the picture is only padded and normalised | |

    `program` holds the trained entries, [3, n] float32: of `random` the whole canvas, of others the pixels of M.
    """

    program: nn.Parameter | None

    def __init__(
        self,
        kind: str = "pad",
        side: int = 224,
        picture: int | None = None,
        width: int = 16,
        square: int = 115,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        """side: of the canvas, in pixels. picture: of the pictures on it (None: as large). mean, std: the network's.

        InputError for an unknown kind and for sizes that leave no picture, or nothing to learn.
        """
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"unknown prompt '{kind}'{nearest(kind, KINDS)}: choose one of {', '.join(KINDS)}")
        self.kind, self.side, self.picture = kind, side, side if picture is None else picture
        self.width, self.square = width, square
        if not 0 < self.picture <= side:
            raise InputError(
                f"pictures of {self.picture} pixels do not fit into the model's {side}: choose 1 to {side}"
            )
        if kind == "pad" and not 0 < 2 * width <= side:
            raise InputError(f"a frame of {width} pixels leaves no picture of {side}: its width is 1 to {side // 2}")
        if kind in ("fix", "random") and not 0 < square <= side:
            raise InputError(f"a square of {square} pixels does not fit into the model's {side}: choose 1 to {side}")
        if kind == "expand" and self.picture == side:
            raise InputError(
                f"the prompt 'expand' surrounds pictures that are smaller than the model's {side} pixels: give their "
                "side with --picture"
            )
        for name, numbers in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(numbers).view(3, 1, 1), persistent=False)
        self.register_buffer("places", self._area().flatten().nonzero().flatten(), persistent=False)
        self.program = nn.Parameter(torch.zeros(3, len(self.places))) if kind != "none" else None

    @property
    def _before(self) -> int:
        """Rows above, and columns left of, the picture."""
        return (self.side - self.picture + 1) // 2

    def _area(self) -> Tensor:
        """bool [o, o]: where P is trained."""
        area = torch.full((self.side, self.side), self.kind not in ("fix", "none"))
        if self.kind == "fix":
            area[: self.square, : self.square] = True
        elif self.kind in ("pad", "expand"):
            edge, size = (
                (self.width, self.side - 2 * self.width) if self.kind == "pad" else (self._before, self.picture)
            )
            area[edge : edge + size, edge : edge + size] = False
        return area

    @torch.no_grad()
    def load_program(self, program: Tensor) -> None:
        """Set P from [3, o, o]; entries outside of the prompt are dropped. InputError for another size."""
        if tuple(program.shape) != (3, self.side, self.side):
            shape = " x ".join(map(str, program.shape))
            raise InputError(f"a prompt of {shape} numbers does not fit pictures of 3 x {self.side} x {self.side}")
        if self.program is not None:
            self.program.copy_(program.reshape(3, -1)[:, self.places.to(program.device)])

    def full_program(self) -> Tensor:
        """P [3, o, o], zero outside of the prompt."""
        return self._spread(self.program.detach()) if self.program is not None else self._nothing()

    def _nothing(self) -> Tensor:
        return self.mean.new_zeros(3, self.side, self.side)

    def _spread(self, numbers: Tensor) -> Tensor:
        """[3, n] -> [3, o, o]."""
        canvas = numbers.new_zeros(3, self.side * self.side)
        return canvas.index_copy(1, self.places, numbers).view(3, self.side, self.side)

    def frame(self, corner: Sequence[int] | None = None) -> Tensor:
        """What is added to a picture, h(P) M [3, o, o]. corner: row and column of the square, of the kind `random`."""
        if self.program is None:
            return self._nothing()
        if self.kind == "pad":
            return self._spread(self.program)
        added = self._spread(self.program.sigmoid())
        if self.kind != "random":
            return added
        last = self.side - self.square
        if corner is None:  # one of a whole batch, from torch's global generator, which a run seeds for each step
            corner = torch.randint(0, last + 1, (2,)).tolist() if self.training else (last // 2, last // 2)
        row, column = corner
        within = torch.zeros_like(added)
        within[:, row : row + self.square, column : column + self.square] = 1
        return added * within

    def forward(self, x: Tensor, corner: Sequence[int] | None = None) -> Tensor:
        """Pictures [b, 3, i, i] in [0, 1] -> the network's input, [b, 3, o, o]."""
        if self.program is None:
            return self.plain(x)
        # clamp passes gradients at 0 and 1 themselves: a black or white border pixel can still be prompted.
        return self._normalised((self._padded(x) + self.frame(corner)).clamp(0, 1))

    def plain(self, x: Tensor) -> Tensor:
        """The same without the prompt."""
        return self._normalised(self._padded(x))

    def _padded(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.picture, self.picture):
            raise InputError(f"the prompt is of pictures of {self.picture} pixels, not of {x.shape[-1]}: resize them")
        before, after = self._before, self.side - self.picture - self._before
        return F.pad(x, (before, after, before, after)) if self.picture < self.side else x

    def _normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def shape(self) -> dict[str, Any]:
        """The constructor's arguments, for JSON."""
        sizes = {"kind": self.kind, "side": self.side, "picture": self.picture}
        own = {"pad": {"width": self.width}, "fix": {"square": self.square}, "random": {"square": self.square}}
        arrays = {name: getattr(self, name).flatten().float().cpu().numpy() for name in ("mean", "std")}
        normal = {name: [float(str(v)) for v in array] for name, array in arrays.items()}  # 0.485, not 0.4850000143
        return sizes | own.get(self.kind, {}) | normal


class Prompted(nn.Module):
    """A classifier behind a prompt and a label mapping, as one module: pictures in [0, 1] to logits of the task.

    mapping: None where the network's own classes are the task's (a new classifier).
    """

    def __init__(self, network: Classifier, prompt: VisualPrompt, mapping: LabelMapping | None):
        super().__init__()
        self.network, self.prompt, self.mapping = network, prompt, mapping

    def forward(self, picture: Tensor, prompted: bool = True) -> Tensor:
        """[b, 3, i, i] -> [b, C]. prompted: whether the prompt is in the picture."""
        shown = self.prompt(picture) if prompted else self.prompt.plain(picture)
        logits = self.network.logits(shown)
        return logits if self.mapping is None else self.mapping(logits)
