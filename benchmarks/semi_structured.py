"""Speed of 2:4 sparsity: linear layers dense and in torch's semi-structured format, on a CUDA device.

python -m benchmarks.semi_structured      # layers of full-size X-VLM, half precision
"""

from __future__ import annotations

import argparse

from console.errors import InputError, run_command


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xvlm", help="model whose configuration is built with random weights")
    parser.add_argument("--tokens", type=int, default=32 * 197, help="rows that each layer transforms")
    parser.add_argument("--repeats", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Measure each shape of layer once and print the speed-ups."""
    args = parse_args()

    import torch
    from torch.nn.functional import linear

    from benchmarks.pruning import make_model
    from evaluation.efficiency.speed import compressed, in_turn, obstacle, spread
    from pruners import prune

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if why_not := obstacle(device, torch.half):
        raise InputError(f"2:4 multiplication cannot be measured here: {why_not}")
    model = make_model(args.model)
    mask = prune(model, [], "omp", (0.5,), allocation="2:4")[0.5]
    mask.apply(model)
    counts: dict[tuple[int, ...], int] = {}
    first: dict[tuple[int, ...], torch.Tensor] = {}
    for layer in model.prunable_layers().values():
        shape = tuple(layer.weight.shape)
        counts[shape] = counts.get(shape, 0) + 1
        first.setdefault(shape, layer.weight.detach())
    total = {"dense": 0.0, "2:4": 0.0}
    for shape, weight in first.items():
        dense = weight.half().to(device)
        sparse = compressed(dense)
        if sparse is None:
            print(f"{counts[shape]:4d} layers {shape[0]:5d} x {shape[1]:5d}: no 2:4 format for this shape, left out")
            continue
        x = torch.randn(args.tokens, shape[1], device=device, dtype=torch.half)
        error = (linear(x, sparse) - linear(x, dense)).abs().max().item()
        works = {"dense": lambda x=x, w=dense: linear(x, w), "2:4": lambda x=x, w=sparse: linear(x, w)}
        times = in_turn(works, args.repeats, device, warm_up=5)
        taken = {kind: spread(values)["median"] for kind, values in times.items()}
        for kind, each in taken.items():
            total[kind] += counts[shape] * each
        print(
            f"{counts[shape]:4d} layers {shape[0]:5d} x {shape[1]:5d}: dense {taken['dense']:.3f} ms, "
            f"2:4 {taken['2:4']:.3f} ms, speed-up {taken['dense'] / taken['2:4']:.2f}, differs by {error:.1e}"
        )
    print(f"all prunable layers, {args.tokens} tokens each: speed-up {total['dense'] / total['2:4']:.2f}")


if __name__ == "__main__":
    run_command(main)
