"""Learn how bright an image is: a whole task in one file. By its line in tasks/__init__.py grids and reports know it.

python brightness.py --model dino-mini --mask pruned_weights/multiflow/dino-mini_multiflow_75_seed42.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from configs.schema import parse
from console.errors import run_command
from data.classification import ImagesToClassify
from data.labelled import LabelledSet
from evaluation.items import one_group
from models.base import placed
from training.finetuning import run_task
from training.merge import gather_shares
from training.options import finetuning_parser, task_settings
from training.task import Finetuning, Task


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig(Finetuning):
    """test: images whose brightness is guessed."""

    reads = "classification"
    test: LabelledSet
    eval_batch: int = 32


class Brightness(Task):
    """The classifier's one output is to be the mean of all pixels, as normalised. The last epoch counts."""

    name, words = "brightness", "brightness"
    main = ("close",)
    validates = False
    Config = BrightnessConfig

    def __init__(self, config, model, limit=None):
        self._config, self._data = config, ImagesToClassify(config.test, model.image_shape, limit)

    def losses(self, model, batch, progress):
        """Squared error."""
        return {"error": (model.logits(batch["image"])[:, 0] - batch["image"].mean(dim=(1, 2, 3))).square().mean()}

    @torch.no_grad()
    def evaluate(self, model, look):
        """`close`: percent of the images whose guess is off by less than 0.1."""
        rank, size = look.fabric.global_rank, look.fabric.world_size
        close = {}
        for number, batch in enumerate(look.batches(self._data, self._config.eval_batch)):
            images = placed(batch, model)["image"]
            off = (model.logits(images)[:, 0] - images.mean(dim=(1, 2, 3))).abs()
            first = (number * size + rank) * self._config.eval_batch
            close |= {first + i: float(value < 0.1) for i, value in enumerate(off.tolist())}
        self._close = gather_shares(look.fabric, close)
        return {"close": 100 * sum(self._close.values()) / len(self._close)}

    def items(self):
        """Whether the guess was close, image by image: what reports test for significance."""
        return one_group({"close": self._close}, None)


def main() -> None:
    """Train, then guess the test images."""
    args = finetuning_parser(__doc__ or "", "brightness").parse_args()
    config = parse(BrightnessConfig, *task_settings(args, "brightness"))
    config.model["classes"] = 1
    make = lambda model, tokenizer, run: Brightness(config, model, run.limit)  # noqa: E731
    run_task(args, config, "brightness", make, model_of="image_classification")


if __name__ == "__main__":
    run_command(main)
