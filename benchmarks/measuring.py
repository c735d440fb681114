"""Time of the errors of all parts of a CLIP's image tower (ViT-B/32, random weights): replay against brute force.

    python -m benchmarks.measuring             # CPU seconds of both, their ratio, the largest difference
Brute force is a full pass of the tower for each part, without the copy of the model that a real cut needs. It is
measured on every SPACING-th part and scaled up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.findings import Finding, add_json, report

SPACING = 6


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--group", type=int, default=384, help="neurons removed together (default: 384)")
    add_json(parser)
    return parser.parse_args()


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """The time of replay over that of brute force, and the largest difference of their errors."""
    import torch
    import transformers

    from models.library.hf_models import wrap_hf
    from models.parts import all_sets
    from shrinking.errors import groups_of
    from shrinking.mope import mope, removals, removed
    from shrinking.scores import score_of

    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config={"num_hidden_layers": args.layers}, text_config={})
    model = wrap_hf(transformers.CLIPModel(config).eval())
    batches = [model.example(args.batch_size)["general"]]
    score = score_of(model, "itc")
    own = [one for one in all_sets(model) if one.name.startswith("vision_model.")]
    values = {one.name: torch.arange(one.count, 0, -1).double() for one in own}
    groups = groups_of(model, values, args.group)
    started = time.process_time()
    table = mope(model, lambda: batches, score, groups)
    replayed = time.process_time() - started
    parts, apart, seconds = removals(model, groups), 0.0, 0.0
    errors = [(name, float(error)) for name, found in table.errors.items() for error in found]
    with torch.no_grad():
        texts = score.runs[1](batches[0])
        whole = score.value([score.runs[0](batches[0]), texts])
        for part, (name, error) in list(zip(parts, errors, strict=True))[::SPACING]:
            assert part.name == name
            started = time.process_time()
            with removed(part):
                found = whole - score.value([score.runs[0](batches[0]), texts])
            seconds += time.process_time() - started
            apart = max(apart, abs(found - error))
    brute = seconds * len(parts) / len(parts[::SPACING])
    print(f"{len(parts)} parts, {args.layers} layers: replayed {replayed:.1f} s, whole passes {brute:.1f} s")
    yield Finding("errors of parts, replayed / by whole passes", replayed / brute, 0.5)
    yield Finding("the same errors, largest difference", apart, 1e-5)


def on_device(args: argparse.Namespace, device: Any) -> Iterator[Finding]:
    """Errors of parts, and a repaired smaller model: on the device as on the CPU."""
    import torch

    from benchmarks.pruning import make_batches
    from calibration.stream import to_device
    from models import load_model
    from models.parts import all_sets
    from shrinking.errors import groups_of
    from shrinking.mope import mope
    from shrinking.repair import cut_repaired
    from shrinking.scores import score_of

    tables, outputs = [], []
    for place in ("cpu", device):
        model = load_model("clip-mini").to(place).eval()
        side = model.sides[0]
        batches = [pair[side] for pair in make_batches(model, 8, 2)]
        sets = [one for one in all_sets(model) if one.kind in ("heads", "neurons")]
        groups = groups_of(model, {one.name: torch.arange(one.count).double() for one in sets}, 64)
        table = mope(model, lambda batches=batches: batches, score_of(model, "itc"), groups)
        tables.append(torch.cat([table.errors[one.name] for one in sets]))
        kept = {one.name: torch.arange(one.count) % 2 == 0 for one in sets}
        small = cut_repaired(model, kept, lambda batches=batches: batches)
        with torch.no_grad():
            images = score_of(small, "itc").runs[0](to_device(batches[0], torch.device(place)))
        outputs.append(images.cpu())
    yield Finding("errors of clip-mini's parts, largest difference", float((tables[1] - tables[0]).abs().max()), 1e-4)
    off = (outputs[1] - outputs[0]).norm() / outputs[0].norm()
    yield Finding("a repaired half of clip-mini, relative difference of its features", float(off), 1e-2)


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
