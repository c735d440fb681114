"""Cost of a finetuning step under a mask, or one that prunes, over a dense one: random weights, a task's recipe.

    python -m benchmarks.sparse_step                          # full size, 384 px, two threads
    python -m benchmarks.sparse_step --model xvlm-mini        # a quick look
    python -m benchmarks.sparse_step --model blip --task captioning --prune platon
    python -m benchmarks.sparse_step --model timm:resnet18 --prune vpns --batch_size 16
All kinds of steps alternate on one model; values of weights do not change the time. The forward pass multiplies by no
mask: a sparse step only zeroes the gradients of pruned weights before the optimizer's step. A step of --prune updates
importances, and every tenth also the mask, so ten of them are timed together. The cost depends on the weights and not
on the batch: its share decreases with larger batches. A step of a search with a prompt (`--prune vpns`) is two halves
with a cut each, against two passes of the network.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from statistics import median

from benchmarks.findings import Finding, add_json, report
from benchmarks.timing import timed
from sparsity.progressive_config import METHODS

BOUND = 1.03
PRUNING_BOUND = 1.15
SEARCH_BOUND = 1.2
INTERVAL = 10  # steps between updates of the mask
QUARTILES = "{median:.4f} [{low:.4f}, {high:.4f}]"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xvlm", help="model whose configurations are taken, with random weights")
    parser.add_argument("--task", default="retrieval", choices=("retrieval", "captioning"), help="whose step")
    parser.add_argument("--prune", choices=(*METHODS, "vpns"), help="also time steps that prune with this method")
    parser.add_argument("--batch_size", type=int, default=4, help="pairs a step")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--repeats", type=int, default=6, help="steps of each kind, alternating; at least 2")
    parser.add_argument("--threads", type=int, default=2)
    add_json(parser)
    return parser.parse_args()


def made_up_pairs(model, config, batch_size: int) -> dict:
    """A batch with the shapes of the recipe: images [b, 3, H, W], texts of `max_tokens`, every pair another image."""
    import torch

    side, words = model.image_shape.image_size, config.train.max_tokens
    ids = torch.randint(5, model.config.text.vocab_size, (batch_size, words))
    image, idx = torch.randn(batch_size, 3, side, side), torch.arange(batch_size)
    return {"image": image, "text_ids": ids, "text_atts": torch.ones_like(ids), "idx": idx}


def make_steps(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Functions that make a dense step, one under a mask, and only the part that the mask adds."""
    import torch

    from configs.schema import parse, read_yaml, task_file
    from models import load_model, load_task_model
    from models.common.memory import keep_freed_memory
    from pruners import prune
    from sparsity.gradual import Gradual
    from sparsity.sparsifiers import Fixed
    from tasks import TASKS
    from training.optimizer import make_optimizer, set_rate

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    path = task_file(args.model, args.task)
    config = parse(TASKS[args.task].Config, read_yaml(path), str(path))
    mask = prune(load_model(args.model, weights="random"), [], "omp", (args.sparsity,))[args.sparsity]
    model = load_task_model(args.model, args.task, weights="random", overrides=config.model)
    fixed = Fixed(mask)
    fixed.attach(model.train())
    optimizer = make_optimizer(model.named_parameters(), config.recipe, fused=True)
    set_rate(optimizer, 1.0)
    batch = made_up_pairs(model, config, args.batch_size)

    def step(hold: Callable[[], None] | None, after: Callable[[], object] | None = None) -> None:
        sum(model(batch).values()).backward()
        if hold is not None:
            hold()
        if config.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.recipe.clip)
        optimizer.step()
        if after is not None:
            after()
        optimizer.zero_grad(set_to_none=True)

    def hold_alone() -> float:
        sum(model(batch).values()).backward()
        started = time.perf_counter()
        fixed.after_backward()
        seconds = time.perf_counter() - started
        optimizer.zero_grad(set_to_none=True)
        return seconds

    steps = {"dense": lambda: step(None), "sparse": lambda: step(fixed.after_backward), "hold": hold_alone}
    if args.prune is not None:
        weights = {name: layer.weight for name, layer in model.prunable_layers().items()}
        gradual = Gradual(args.prune, weights, 10**6, args.sparsity, 0, 1, INTERVAL)
        numbers = itertools.count(1)
        steps["pruning"] = lambda: step(None, lambda: gradual.update(next(numbers)))
    return steps


def search_ratios(name: str, size: int, sparsity: float, repeats: int, device: str = "cpu") -> list[float]:
    """Seconds of a step of VPNs' search over those of two forward and backward passes of the plain network.

    Random weights and noise images; both alternate, in changing order.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from models import load_task_model
    from models.label_mapping import LabelMapping
    from models.prompts import Prompted, VisualPrompt
    from sparsity.progressive_config import ProgressiveConfig
    from sparsity.search import Search
    from training.optimizer import Recipe, make_optimizer

    overrides = {"conv": True} if ":" in name else {}
    network, plain = (
        load_task_model(name, "image_classification", weights="random", overrides=overrides).to(device).train()
        for _ in range(2)
    )
    side = network.image_shape.image_size
    prompt = VisualPrompt(side=side, width=max(1, side // 14)).to(device)
    product = Prompted(network, prompt, LabelMapping(torch.arange(10)).to(device))
    whole = nn.ModuleDict({"product": product})
    search = Search(ProgressiveConfig(prune="vpns", sparsity=100 * sparsity), None)
    search.attach(network)
    search.started(4 * repeats + 4, 0)
    search.begin_search(whole, prompt.parameters())
    recipe = Recipe(lr=search.rate(), optimizer="adam", weight_decay=1e-4)
    optimizer = make_optimizer(search.trained(whole), recipe, fused=True)
    x = torch.rand(size, 3, side, side, device=device)
    labels = torch.randint(0, 10, (size,), device=device)
    done = itertools.count(1)

    def step() -> None:
        for prompted in (True, False):
            F.cross_entropy(product(x, prompted), labels).backward()
            search.after_backward()
            if not prompted:
                prompt.program.grad = None
            optimizer.step()
            search.after_update(next(done))
            optimizer.zero_grad(set_to_none=True)
        waited()

    def passes() -> None:
        for _ in range(2):
            F.cross_entropy(plain.logits(x)[:, :10], labels).backward()
            plain.zero_grad(set_to_none=True)
        waited()

    def waited() -> None:
        if x.is_cuda:
            torch.cuda.synchronize()

    step()
    passes()
    ratios = []
    for number in range(repeats):
        taken = {work: timed(work) for work in ((step, passes) if number % 2 else (passes, step))}
        ratios.append(taken[step] / taken[passes])
    return ratios


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """Steps of each kind over dense ones, in pairs; also prints seconds."""
    from evaluation.efficiency.speed import spread

    if args.prune == "vpns":
        import torch

        torch.set_num_threads(args.threads)
        ratios = search_ratios(args.model, args.batch_size, args.sparsity, args.repeats)
        print(f"vpns on {args.model}, {args.batch_size} pictures a pass: {QUARTILES.format(**spread(ratios))}")
        yield Finding(f"vpns on {args.model}, a step of the search / two passes", median(ratios), SEARCH_BOUND)
        return
    steps = make_steps(args)
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for kind in ("dense", "sparse") * 2:  # the optimizer makes its averages, the allocator its pools
        steps[kind]()
    for number in range(args.repeats):
        for kind in ("dense", "sparse") if number % 2 else ("sparse", "dense"):  # neither always follows the other
            seconds[kind].append(timed(steps[kind]))
    hold = [steps["hold"]() for _ in range(3)]
    of = f"{args.model} {args.task}, {args.batch_size} pairs"
    for kind, values in seconds.items():
        print(f"{of}: {kind:7s} step {QUARTILES.format(**spread(values))} s, least {min(values):.4f} s")
    ratios = [sparse / dense for dense, sparse in zip(seconds["dense"], seconds["sparse"], strict=True)]
    yield Finding(f"{of}: a step under a mask / a dense one", median(ratios), BOUND)
    yield Finding(f"{of}: taking the gradients, as a share of a dense step", median(hold) / median(seconds["dense"]))
    if args.prune is not None:
        steps["pruning"]()
        pairs = [(timed(steps["dense"]), timed(steps["pruning"])) for _ in range(2 * INTERVAL)]
        dense, pruning = map(sum, zip(*pairs, strict=True))
        yield Finding(f"{of}: a step of {args.prune} with its masks / a dense one", pruning / dense, PRUNING_BOUND)


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
