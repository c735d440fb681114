"""The option of methods that look at the inputs of layers: how much text tokens and image tokens count.

In a generative model (docs/generative.md) images are most of the tokens. Text alone, images alone, or weights between
rank weights by other inputs; so do tokens that are chosen block by block (calibration/token_choice.py).
    python prune.py --model hf:<folder> --pruner wanda --tokens text
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.options import option
from console.errors import InputError

SHARES = {"all": None, "text": 0.0, "image": 1.0}
CHOSEN = ("atv", "amia")


@dataclass(frozen=True)
class TokenOptions:
    """Options of a method that scores by inputs."""

    tokens: str | float = option(
        "all",
        "tokens that count where a layer reads text and images: all alike, text, image, the share of the weight "
        "that image tokens have, from 0 to 1, or those that each block chooses: atv (text, and images that it changes "
        "most) or amia (representative ones); layers that read images only (vision, projector) stay as they are",
    )

    def __post_init__(self) -> None:
        """InputError for anything but a name or a share from 0 to 1."""
        try:
            valid = self.tokens in (*SHARES, *CHOSEN) or 0 <= float(self.tokens) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise InputError(
                f"tokens must be all, text, image, atv, amia, or a share of image tokens from 0 to 1, not {self.tokens}"
            )

    @property
    def share(self) -> float | None:
        """The weight of image tokens, text tokens have the rest; None: all tokens count alike."""
        return SHARES.get(self.tokens) if self.tokens in (*SHARES, *CHOSEN) else float(self.tokens)
