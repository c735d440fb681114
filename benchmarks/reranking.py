"""Cost of re-ranking texts if an image's keys and values are computed once for all of them.

    python -m benchmarks.reranking                       # full-size X-VLM, 384 px, one image with 64 texts
    python -m benchmarks.reranking --model blip --cpu_time
Weights are random. Texts have 8 to 20 tokens, as in COCO, padded to `max_tokens`. Three ways alternate: a copy of the
image for every text, with all padding; copies without common padding; one image for all texts, as in evaluations. Their
scores are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from benchmarks.findings import Finding, add_json, report
from benchmarks.timing import add_clock, best_of

SHORTEST, LONGEST = 8, 20


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xvlm", help="model whose configurations are taken, with random weights")
    parser.add_argument("--texts", type=int, default=64, help="texts matched with the image")
    parser.add_argument("--repeats", type=int, default=3, help="passes of each kind, alternating")
    parser.add_argument("--threads", type=int, default=1)
    add_clock(parser)
    add_json(parser)
    return parser.parse_args()


def make_passes(args: argparse.Namespace) -> dict[str, Callable]:
    """Functions that match in each of the three ways."""
    import torch

    from configs.schema import parse, read_yaml, task_file
    from models import load_task_model
    from tasks.retrieval import RetrievalConfig

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    path = task_file(args.model, "retrieval")
    config = parse(RetrievalConfig, read_yaml(path), str(path))
    model = load_task_model(args.model, "retrieval", weights="random", overrides=config.model).eval()
    side, words, n = model.image_shape.image_size, config.evaluation.max_tokens, args.texts
    lengths = torch.randint(SHORTEST, LONGEST + 1, (n,))
    atts = (torch.arange(words) < lengths[:, None]).long()
    ids = torch.randint(5, model.config.text.vocab_size - 2, (n, words)) * atts
    with torch.no_grad():
        image, feature = model.image_entry(torch.randn(1, 3, side, side))
        text, text_feature = model.text_entry(ids, atts)
    similarity = text_feature @ feature[0]
    full = torch.cat([atts, torch.ones_like(atts[:1])])  # a row without padding keeps all columns
    all_texts = torch.cat([text, text[:1]])

    @torch.no_grad()
    def padded() -> torch.Tensor:
        copies = image.expand(n + 1, -1, -1).contiguous()
        return model.match(all_texts, full, copies, torch.cat([similarity, similarity[:1]]))[:n]

    @torch.no_grad()
    def copied() -> torch.Tensor:
        return model.match(text, atts, image.expand(n, -1, -1).contiguous(), similarity)

    @torch.no_grad()
    def shared() -> torch.Tensor:
        return model.match(text, atts, image, similarity)

    return {"copies, all padding": padded, "copies": copied, "one image for all": shared}


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """Ratios of the best times of each way, and the largest difference of their scores."""
    passes = make_passes(args)
    scores = {kind: work() for kind, work in passes.items()}  # also the warm-up
    print(f"{args.model}: an image with {args.texts} texts, {args.threads} thread(s)")
    best, last = best_of(passes, args.repeats, args.cpu_time), list(passes)[-1]
    for kind in list(passes)[:-1]:
        yield Finding(f"{args.model}, {last} / {kind}", best[last] / best[kind], 1)
        apart = (scores[kind] - scores[last]).abs().max().item()
        yield Finding(f"{args.model}, {last} and {kind}, largest difference of scores", apart, 1e-4)


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
