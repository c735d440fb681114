"""The distribution of a model's prunable weights: standard deviation and kurtosis by modality.

Magnitude is a better importance the further weights have moved from their Gaussian initialisation (excess kurtosis 0).
A global threshold prunes modalities equally only if their standard deviations are similar.
    python -m evaluation.weight_shape --model xvlm-mini
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from configs.schema import model_names
from console.command_line import Parser
from console.errors import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from models.base import Model


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help=f"one of {', '.join(model_names())}, timm:NAME or hf:ID")
    parser.add_argument("--weights", help="checkpoint (default: the model's own)")
    return parser.parse_args(arguments)


def weight_shape(model: Model) -> dict[str, tuple[int, float, float]]:
    """Modality -> number of prunable weights, their standard deviation, their excess kurtosis (0: Gaussian).

    The last is NaN where all weights are equal. From running sums in float64 about the modality's mean; no second
    copy of the weights.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, layer in model.prunable_layers().items():
        groups.setdefault(model.modality_of(name), []).append(layer.weight.detach())
    found = {}
    for modality, weights in groups.items():
        n = sum(w.numel() for w in weights)
        mean = sum(w.double().sum().item() for w in weights) / n
        second, fourth = (sum((w.double() - mean).pow(k).sum().item() for w in weights) / n for k in (2, 4))
        found[modality] = n, second**0.5, fourth / second**2 - 3 if second else math.nan
    return found


def main() -> None:
    """Print a row a modality."""
    args = parse_args()

    from rich.table import Table

    from console.results import result_console
    from models import load_model

    table = Table(title=f"prunable weights of {args.model}")
    for column in ("modality", "weights", "standard deviation", "excess kurtosis"):
        table.add_column(column, justify="left" if column == "modality" else "right")
    for modality, (n, std, kurtosis) in weight_shape(load_model(args.model, weights=args.weights)).items():
        table.add_row(modality, f"{n:,}", f"{std:.4f}", f"{kurtosis:.2f}")
    result_console().print(table)


if __name__ == "__main__":
    run_command(main)
