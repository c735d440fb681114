"""Make a dual encoder from two frozen pretrained towers, of images and of texts, by training their projections.

    python -m pretraining.dual_encoder --output_dir weights/hf/dual-stamps
    python prune.py --model hf:weights/hf/dual-stamps ...
After Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022, with the text tower locked, too.
Each image and each caption is encoded once, since the towers are frozen. The same command gives the same weights, with
any number of threads: all is computed in float64, and the projections are rounded to bfloat16's values.
--random uses towers with random weights, as a baseline.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.limits import at_least
from configs.overrides import add_set, read_settings
from configs.schema import parse
from console.command_line import Parser
from console.errors import InputError, run_command
from console.progress import console, progress_bar
from data.sources import Files

if TYPE_CHECKING:
    from torch import Tensor

    from data.retrieval import Gallery
    from models.library.pairs import WrappedPairs
    from models.wrap import WrappedModel

CONFIG = "configs/hf/dual_encoder.yaml"


@dataclass(frozen=True)
class DualEncoderConfig:
    """A dual encoder of two frozen towers."""

    vision: str  # folder or hub id of the image tower
    text: str  # folder or hub id of the text tower
    train: Files  # gallery to train on (docs/data.md)
    test: Files  # gallery to test on
    projection_dim: int = 256  # width of the contrastive space
    steps: int = 600  # optimizer steps of the projections
    batch_size: int = 256  # pairs per step
    lr: float = 1.0e-3  # of AdamW, first of a cosine decay
    weight_decay: float = 0.1  # of the projections
    seed: int = 42  # of the projections and the batches
    max_words: int = 40  # words kept of a caption
    max_tokens: int = 40  # length to which texts are cut
    encode: int = field(default=32)  # images or texts per forward pass of a tower

    def __post_init__(self) -> None:
        at_least(self, 1, "projection_dim", "steps", "max_words", "encode")
        at_least(self, 2, "batch_size", "max_tokens")
        at_least(self, 0, "weight_decay", "seed")
        if not self.lr > 0:
            raise InputError(f"lr must be above 0, not {self.lr}")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help=f"YAML file (default: {CONFIG})")
    parser.add_argument("--output_dir", required=True, help="output folder")
    parser.add_argument("--random", action="store_true", help="use towers with random weights, as a baseline")
    add_set(parser)
    return parser.parse_args(arguments)


def joined_towers(config: DualEncoderConfig, random: bool = False) -> WrappedPairs:
    """Both towers with projections drawn from the seed; InputError if one is missing or of the wrong kind."""
    import torch
    import transformers

    from models.library.hf_models import load_hf, wrap_hf

    weights = "random" if random else None
    vision, text = (load_hf(one, weights, {}, seed=config.seed) for one in (config.vision, config.text))
    if not vision.image_shape.image_size or text.image_shape.image_size or text.tokenizer is None:
        raise InputError(
            f"vision: {config.vision} must be an image encoder, text: {config.text} a text encoder with its tokenizer: "
            "exchange them, or give other ones"
        )
    side = vision.image_shape.image_size
    ids, mask = text.tokenizer.pad_batch([[0, 0]])
    check_pooled(config.vision, vision, pixel_values=torch.zeros(1, 3, side, side))
    check_pooled(config.text, text, input_ids=ids, attention_mask=mask)
    both = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.module.config, text.module.config, projection_dim=config.projection_dim
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = transformers.VisionTextDualEncoderModel(both, vision.module, text.module).eval().double()
        for projection in (module.visual_projection, module.text_projection):
            bound = projection.in_features**-0.5  # torch's own, drawn in float64
            projection.weight.data.uniform_(-bound, bound)
    shape = vision.image_shape
    said = {"size": shape.image_size, "image_mean": shape.mean, "image_std": shape.std}
    return wrap_hf(module, text.tokenizer, {key: value for key, value in said.items() if value is not None})


def check_pooled(place: str, model: WrappedModel, **inputs: Tensor) -> None:
    """InputError unless the model gives one pretrained vector for an image or a text, by a forward pass of one."""
    import torch

    try:
        with torch.no_grad():
            found = model.module(**inputs)
    except (TypeError, ValueError):  # it wants other inputs, too
        found = None
    if getattr(found, "pooler_output", None) is None:
        raise InputError(f"{place} has no pooled output, which a tower of a dual encoder needs: give another one")
    if model.load_report and (fresh := [name for name in model.load_report.fresh if "pooler" in name]):
        raise InputError(f"the weights of {place} have no {fresh[0]}, which pools its output: give weights that do")


def tower_states(model: WrappedPairs, gallery: Gallery, config: DualEncoderConfig) -> tuple[Tensor, Tensor]:
    """The outputs of the towers before their projections, for the images [n, d] and texts [m, e] of a gallery."""
    import torch

    from data.evaluation_batches import evaluation_batches

    vision, text = model.towers
    images, texts = [], []
    ids = [model.tokenizer.encode(one, True, config.max_tokens) for one in gallery.texts]
    with torch.no_grad(), progress_bar("images and texts", len(gallery) + len(ids)) as advance:
        for batch in evaluation_batches(gallery, config.encode):
            images.append(vision(pixel_values=batch["image"].double()).pooler_output)
            advance(len(batch["image"]))
        for start in range(0, len(ids), config.encode):
            some, atts = model.tokenizer.pad_batch(ids[start : start + config.encode])
            texts.append(text(input_ids=some, attention_mask=atts).pooler_output)
            advance(len(some))
    return torch.cat(images), torch.cat(texts)


def train_projections(
    model: WrappedPairs, images: Tensor, texts: Tensor, of_text: Tensor, config: DualEncoderConfig
) -> float:
    """Fit both projections and the temperature to states of images [n, d] and texts [m, e]. of_text [m]: their images.

    Returns the mean loss of the last tenth of the steps; InputError where it is not finite.
    """
    import torch
    import torch.nn.functional as F

    from models.common.contrastive import pairs_loss, same_image_targets

    module = model.module
    projections = [*module.visual_projection.parameters(), *module.text_projection.parameters()]
    groups = [{"params": projections}, {"params": [module.logit_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    with torch.enable_grad(), progress_bar("projections", config.steps) as advance:
        for _ in range(config.steps):
            some = torch.randperm(len(texts), generator=generator)[: config.batch_size]
            image = F.normalize(module.visual_projection(images[of_text[some]]), dim=-1)
            text = F.normalize(module.text_projection(texts[some]), dim=-1)
            # Several captions of one image are all positives.
            loss = pairs_loss(image @ text.t() * module.logit_scale.exp(), same_image_targets(of_text[some]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            model.clamp_temperature()
            losses.append(loss.item())
            advance(note=f"loss {losses[-1]:.3f}")
    with torch.no_grad():
        for trained in (*projections, module.logit_scale):
            trained.copy_(trained.bfloat16())  # the sums of other threads or processors differ in the last bits
    module.float()
    last = losses[-max(1, config.steps // 10) :]
    if not math.isfinite(loss := sum(last) / len(last)):
        raise InputError(f"the loss of the projections is {loss} in the end: take an lr below {config.lr:g}")
    return loss


def build(config: DualEncoderConfig, folder: Path, random: bool = False) -> dict[str, float]:
    """Join the towers, train, test, and write the folder for `hf:`, with results.json; returns the test's recalls.

    InputError if the folder exists, or a tower or data are missing.
    """
    import torch

    from data.retrieval import Gallery
    from evaluation.retrieval import RetrievalSettings, evaluate_retrieval
    from models.library.hf_models import write_inputs
    from storage.atomic import atomic_path, write_json

    if folder.exists():
        raise InputError(f"{folder} exists already: remove it, or choose another --output_dir")
    model = joined_towers(config, random)
    train, test = (Gallery(files, model.image_shape, config.max_words) for files in (config.train, config.test))
    states = tower_states(model, train, config)
    loss = train_projections(model, *states, torch.tensor(train.image_of_text), config)
    settings = RetrievalSettings(max_tokens=config.max_tokens, image_batch=config.encode, text_batch=config.encode)
    found = evaluate_retrieval(model, test, model.tokenizer, settings)["itc"]
    with atomic_path(folder) as temporary:
        model.module.save_pretrained(temporary)
        write_inputs(model, temporary)
        sizes = {"train_images": len(train), "test_images": len(test)}
        write_json(temporary / "results.json", {"loss": loss, "random": random, **sizes, "test": found})
    return found


def main() -> None:
    """Build the dual encoder, and print the recalls of zero-shot retrieval."""
    args = parse_args()
    config = parse(DualEncoderConfig, *read_settings(args.config, args.set))
    found = build(config, Path(args.output_dir), args.random)
    console.print(f"{args.output_dir}: test: " + ", ".join(f"{key} {value:g}" for key, value in found.items()))


if __name__ == "__main__":
    run_command(main)
