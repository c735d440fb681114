"""A step of distillation against a plain step and the teacher's forward pass: CLIP (ViT-B/32, random weights).

    python -m benchmarks.distilling
The student has half of the teacher's heads and neurons. The three kinds alternate, and the best of each counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from benchmarks.findings import Finding, add_json, report
from benchmarks.timing import add_clock, best_of

BOUND = 1.6
"""Upper bound of the time of a distillation step without the teacher's pass, in plain steps."""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    add_clock(parser)
    add_json(parser)
    return parser.parse_args()


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """The ratio; seconds are printed."""
    import torch
    import transformers

    from models.library.hf_models import wrap_hf
    from models.parts import Layers, all_sets
    from models.surgery import cut
    from shrinking.relearning import Pretraining
    from training.distillation import Distillation, Outputs

    torch.manual_seed(0)
    towers = {"num_hidden_layers": args.layers}
    config = transformers.CLIPConfig(vision_config=towers, text_config=towers)
    teacher = wrap_hf(transformers.CLIPModel(config).eval()).requires_grad_(False)
    half = {one.name: torch.arange(one.count) % 2 == 0 for one in all_sets(teacher) if not isinstance(one, Layers)}
    plain = Pretraining(cut(teacher, half).requires_grad_(True))
    taught = Distillation(plain, teacher, argparse.Namespace(distil="mope", sim=None, feat=None, hidden=None))
    batch = teacher.example(args.batch_size)["general"]

    def step(module: torch.nn.Module) -> None:
        sum(module(batch).values()).backward()
        module.zero_grad(set_to_none=True)

    works: dict[str, Callable[[], object]] = {
        "plain step": lambda: step(plain),
        "teacher's forward": torch.no_grad()(lambda: Outputs(teacher).towers(batch)),
        "step of distillation": lambda: step(taught),
    }
    for work in works.values():
        work()  # the first call of each is slower
    best = best_of(works, args.repeats, args.cpu_time)
    distilled = best["step of distillation"] - best["teacher's forward"]
    yield Finding(
        "(a step of distillation - the teacher's forward) / a plain step", distilled / best["plain step"], BOUND
    )


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
