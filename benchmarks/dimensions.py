"""Memory of one layer's intrinsic dimension: BLIP at full size (random weights), the widest layer of its first block.

    python -m benchmarks.dimensions
The outputs are several times as large as `--memory`, and so are processed in slices of tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.findings import Finding, add_json, report
from benchmarks.timing import memory_in_use, timed


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--memory", type=float, default=0.3, help="GB for outputs")
    add_json(parser)
    return parser.parse_args()


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """Memory of the distances beyond that of the passes, over --memory."""
    import ctypes

    import torch

    from calibration.layer_outputs import Piece, output_shapes, plan_passes, squared_distances
    from models import load_model

    # glibc must return freed tensors at once: otherwise the peak would include memory that only the heap keeps.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)
    model = load_model("blip", weights="random", overrides={"vision": {"layers": 1}}).eval()
    name = "visual_encoder.blocks.0.mlp.fc1.weight"

    def batches() -> Iterator[dict]:
        for number in range(args.samples // args.batch_size):
            torch.manual_seed(number)
            yield {"image": torch.randn(args.batch_size, 3, 224, 224)}

    def run(model, batch) -> None:
        model.visual_encoder(batch["image"])

    @torch.no_grad()
    def bare() -> None:
        for batch in batches():
            run(model, batch)

    def distances(passes: list[list[Piece]]) -> None:
        for _ in squared_distances(model, batches, args.samples, passes, run):
            pass

    with torch.no_grad():
        shape = output_shapes(model, next(batches()), run, None)[name]
    passes = plan_passes({name: shape}, args.samples, args.memory * 1e9)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident set
    once = timed(bare)
    before = memory_in_use("VmHWM")
    seconds = timed(lambda: distances(passes))
    held = memory_in_use("VmHWM") - before
    whole = 4e-9 * args.samples * shape.tokens * shape.width
    print(f"{whole:.3g} GB of outputs in {len(passes)} passes, {seconds:.1f} s; a pass alone {once:.1f} s")
    yield Finding(f"intrinsic dimension of one BLIP layer, memory beyond a pass / --memory {args.memory:g}",
                  held / (args.memory * 1e9), 1)  # fmt: skip


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
