"""The intrinsic dimension of the outputs of each prunable layer.

    python -m inspection.intrinsic_dimension --model blip-mini --samples 512
The output file weights the scores of layers: prune.py --ids FILE, retrieval.py --prune platon --ids FILE (Wang et al.,
"Exploring Intrinsic Dimension for Vision-Language Model Pruning", ICML 2024). Dimensions are comparable within one run
only: they depend on the numbers of samples and of blocks.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.overrides import add_set, read_settings
from configs.schema import model_names, parse, task_file
from console.command_line import Parser
from console.errors import InputError, run_command

if TYPE_CHECKING:
    from inspection.two_nn import Dimension
    from models.base import Batch, Model

BATCH = 16


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help=f"one of {', '.join(model_names())}, timm:NAME or hf:ID")
    parser.add_argument("--weights", help="checkpoint (default: the model's own)")
    parser.add_argument("--task", help="measure the task's model, filled from --weights (retrieval, captioning, ...)")
    parser.add_argument("--mask", help="measure the model under this mask")
    parser.add_argument("--kept", metavar="MASK", help="also plot dimensions against the weights that this mask keeps")
    parser.add_argument("--before", metavar="FILE", help="also plot the dimensions in this file, as circles")
    parser.add_argument("--conv", action="store_true", help="also measure convolutions (timm:NAME and hf:ID models)")
    parser.add_argument("--config", help="YAML file that names the data (default: configs/<model>/prune.yaml)")
    add_set(parser)
    parser.add_argument("--samples", type=int, default=2000, help="calibration samples (default: 2000)")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of the last decomposition (default: 20)")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="share of the ratios used in the fit (first TwoNN program: 0.9; default: 1)",
    )
    parser.add_argument(
        "--memory", type=float, default=4.0, help="GB of memory for layer outputs and distances (default: 4)"
    )
    parser.add_argument("--seed", type=int, help="seed of the samples and of the blocks (default: the configuration's)")
    parser.add_argument("--num_workers", type=int, help="loader processes (default: the configuration's)")
    parser.add_argument("--output_dir", default="ids", help="folder of the file and the picture (default: ids)")
    parser.add_argument("--device", help="cpu, cuda or cuda:<number> (default: cuda where there is one)")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, write <model>.json and a picture, and print the table."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "prune"), args.set)

    from console.results import result_console
    from inspection.two_nn import check_points
    from models import file_name
    from pruners.settings import PruneConfig
    from sparsity.weighting import read_ids
    from storage.atomic import check_writable, no_empty_folder, write_json

    config = parse(PruneConfig, settings, where)
    check_points(args.samples, args.blocks, args.fraction)
    if not args.memory > 0:
        raise InputError(f"--memory is gigabytes, above 0, not {args.memory:g}")
    before = read_ids(args.before, 1.0).by_name if args.before else {}
    folder = Path(args.output_dir)
    with no_empty_folder(folder):
        check_writable(folder)
        about, found = measure(args, config)
        parts = [file_name(args.model), args.task, Path(args.mask).stem if args.mask else None]
        path = folder / f"{'_'.join(part for part in parts if part)}.json"
        write_json(
            path, about | {"dimensions": {name: row["dimension"] for name, row in found.items()}, "layers": found}
        )
        title = f"{args.model}: intrinsic dimension of {args.samples} samples"
        draw(
            found, path.with_suffix(".png"), title + (f"; circles: {Path(args.before).stem}" if before else ""), before
        )
    screen = result_console()
    screen.print(table(found, args.model))
    screen.print(f"dimensions: {path}\npicture: {path.with_suffix('.png')}", markup=False)


def measure(args: argparse.Namespace, config: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings, and a row for each prunable layer: dimension, whole, deviation, used, modality, kind."""
    import torch

    from calibration.layer_outputs import output_shapes, plan_passes, squared_distances
    from console.progress import console, progress_bar
    from console.words import counted
    from data.calibration import data_identity
    from evaluation.efficiency.table import chosen_device, load_for
    from inspection.two_nn import dimension_of
    from pruners.preparing import plain_samples, weights_identity
    from sparsity.mask import Mask
    from sparsity.weighting import FORMAT

    device, seed = chosen_device(args.device), config.seed if args.seed is None else args.seed
    model = load_for(args.model, args.task, args.weights, conv=args.conv)
    if args.mask:
        Mask.load(args.mask).apply(model)
    kept = Mask.load(args.kept).fitted(model) if args.kept else None
    count = math.ceil(args.samples / BATCH)
    workers = config.num_workers if args.num_workers is None else args.num_workers
    config = replace(config, seed=seed, num_workers=workers)
    batches, samples = plain_samples(model, config, args.samples, BATCH)

    run = _pass_of(model, args.task)
    longest = getattr(config.sides[model.sides[0]], "max_tokens", None)
    with torch.no_grad():
        shapes = output_shapes(model, next(samples()), run, longest)
    passes = plan_passes(shapes, args.samples, args.memory * 1e9)
    size = max(4e-9 * args.samples * sum(piece.numbers for piece in pieces) for pieces in passes)
    console.print(
        f"{counted(len(shapes), 'layer')}, {counted(len(passes), 'pass')} over {args.samples:,} samples, "
        f"at most {size:.3g} GB of outputs at once"
    )
    found = {}
    with progress_bar("outputs", len(passes) * count) as advance:
        for name, squares in squared_distances(model.to(device).eval(), samples, args.samples, passes, run, advance):
            estimate: Dimension = dimension_of(squares.numpy(), args.blocks, None, args.fraction, seed)
            found[name] = asdict(estimate) | {"modality": model.modality_of(name), "kind": kind_of(name)}
    about = {
        "format": FORMAT,
        "model": args.model,
        "task": args.task,
        "weights": weights_identity(model),
        "mask": Mask.load(args.mask).source if args.mask else None,
        "samples": args.samples,
        "blocks": args.blocks,
        "fraction": args.fraction,
        "seed": seed,
        "data": data_identity(batches),
        "padding": "zero",
        "shapes": {name: list(layer.weight.shape) for name, layer in model.prunable_layers().items()},
    }
    if kept is not None:
        for name, row in found.items():
            row["kept"] = 1 - kept.sparsity([name])
    order = [name for name in model.prunable_layers() if name in found]
    return about, {name: found[name] for name in order}


def _pass_of(model: Model, task: str | None) -> Any:
    """The forward pass of a batch: pruning's, or the task's."""
    if task is None:
        return lambda model, batch: model.observe(batch)
    probe = model.probe(1)

    def run(model: Model, batch: Batch) -> object:
        if lacking := [name for name in probe.batch if name not in batch]:
            raise InputError(
                f"the calibration data has no {lacking[0]}, which {task} reads: measure the pretraining model (without "
                "--task)"
            )
        return probe.run(model, batch)

    return run


def kind_of(name: str) -> str:
    """The kind of a layer in its block: its path after the last number (`attn.qkv`), or all of it."""
    words = name.removesuffix(".weight").split(".")
    behind = itertools.takewhile(lambda word: not word.isdigit(), reversed(words))
    return ".".join(reversed(list(behind)))


def table(found: dict[str, dict[str, Any]], model: str) -> Any:
    """A row for each modality and kind: layers, and the mean, least and largest dimension."""
    from rich.table import Table

    made = Table(title=f"intrinsic dimension of {model}'s layers, mean over decompositions into blocks")
    for column in ("modality", "kind", "layers", "mean", "least", "largest", "all points", "points used"):
        made.add_column(column, justify="left" if column in ("modality", "kind") else "right")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found.values():
        groups.setdefault((row["modality"], ""), []).append(row)
    for row in found.values():
        groups.setdefault((row["modality"], row["kind"]), []).append(row)
    order = list(dict.fromkeys(modality for modality, _ in groups))
    for (modality, kind), rows in sorted(groups.items(), key=lambda group: order.index(group[0][0])):
        values = [row["dimension"] for row in rows]
        made.add_row(
            modality if not kind else "", kind or "all", str(len(rows)),
            f"{sum(values) / len(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}",
            f"{sum(row['whole'] for row in rows) / len(rows):.1f}", f"{min(row['used'] for row in rows):,}",
            style="bold" if not kind else None,
        )  # fmt: skip
    return made


def draw(found: dict[str, dict[str, Any]], path: Path, title: str, before: Mapping[str, float]) -> None:
    """Draw the dimension of each layer, coloured by kind; the dots of a modality are joined (PNG).

    before: dimensions of layers to compare with, as circles. With --kept, a second panel has the dimension against the
    share of the layer's weights that the mask keeps, coloured by modality.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from sparsity.picture import COLOURS, save_picture

    names = list(found)
    with_mask = "kept" in found[names[0]]
    figure = Figure(figsize=(11, 4.6 * (1 + with_mask)), layout="constrained")
    axes = figure.subplots(1 + with_mask, 1, squeeze=False)
    axis = axes[0, 0]
    kinds = list(dict.fromkeys(row["kind"] for row in found.values()))
    colours = colormaps["tab20" if len(kinds) > 10 else "tab10"]
    start = 0
    for number, modality in enumerate(dict.fromkeys(row["modality"] for row in found.values())):
        own = [i for i, name in enumerate(names) if found[name]["modality"] == modality]
        axis.plot(own, [found[names[i]]["dimension"] for i in own], color="0.6", linewidth=0.8, zorder=1)
        if number % 2:
            axis.axvspan(own[0] - 0.5, own[-1] + 0.5, color="0.95", zorder=0)
        axis.text((own[0] + own[-1]) / 2, 1.01, modality, transform=axis.get_xaxis_transform(), ha="center")
        start = own[-1]
        if with_mask:
            points = [(100 * found[names[i]]["kept"], found[names[i]]["dimension"]) for i in own]
            axes[1, 0].scatter(*zip(*points, strict=True), s=22, color=COLOURS[number % len(COLOURS)], label=modality)
    for number, kind in enumerate(kinds):
        own = [i for i, name in enumerate(names) if found[name]["kind"] == kind]
        values, spread = ([found[names[i]][what] for i in own] for what in ("dimension", "deviation"))
        axis.errorbar(own, values, spread, fmt="o", markersize=4, linewidth=0.6, color=colours(number % 20), label=kind)
    shared = [i for i, name in enumerate(names) if name in before]
    axis.scatter(shared, [before[names[i]] for i in shared], s=34, facecolors="none", edgecolors="0.4", linewidths=0.8)
    axis.set(xlim=(-1, start + 1), ylim=(0, None), xlabel="layers, in the model's order", ylabel="intrinsic dimension")
    axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    if with_mask:
        axes[1, 0].set(xlabel="% of the layer's weights kept", ylabel="intrinsic dimension", ylim=(0, None))
        axes[1, 0].legend(frameon=False)
        axes[1, 0].spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    save_picture(figure, path)


if __name__ == "__main__":
    run_command(main)
