"""Memory and time of pruning a 7B generative model block by block: random bf16 weights in the shapes of Qwen2.5-VL-7B.

    python -m benchmarks.streaming --folder /some/disk/with/16/GB
    python -m benchmarks.streaming --overhead          # streamed against in one piece, for a model that fits
The folder is written first and removed in the end. Pages of files are not counted as memory, since the system reclaims
them at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.findings import Finding, add_json, report
from benchmarks.timing import best_of, memory_in_use, timed

BOUNDS = {"omp": 10, "wanda": 10, "multiflow": 10, "sparsegpt": 14}
"""Method -> upper bound of the peak memory for a 7B model, in GiB."""

OVERHEAD = 1.3

NARROW = {
    "words": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8},
    "sees": {"hidden_size": 640, "intermediate_size": 1720, "num_heads": 8, "out_hidden_size": 1024},
}


TINY = {
    "words": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 99,
    },
    "sees": {"hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 256},
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="folder in which the model is written")
    parser.add_argument("--methods", nargs="+", default=list(BOUNDS), choices=list(BOUNDS))
    parser.add_argument("--layers", type=int, default=28, help="layers of the language model")
    parser.add_argument("--depth", type=int, default=32, help="layers of the vision tower")
    parser.add_argument("--batches", type=int, default=2, help="calibration batches of one picture and a short text")
    parser.add_argument("--overhead", action="store_true", help="compare with a model in one piece instead")
    parser.add_argument("--prune", nargs=2, metavar=("METHOD", "MODEL"), help=argparse.SUPPRESS)
    add_json(parser)
    return parser.parse_args()


def config_of(layers: int, depth: int, **smaller: dict[str, int]) -> Any:
    """The configuration of Qwen2.5-VL-7B with these numbers of layers. smaller: overrides of sizes, by tower."""
    import transformers

    words = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": layers, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    sees = {
        "hidden_size": 1280, "intermediate_size": 3420, "depth": depth, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [n for n in (7, 15, 23, 31) if n < depth],
    }  # fmt: skip
    return transformers.Qwen2_5_VLConfig(
        text_config=words | smaller.get("words", {}), vision_config=sees | smaller.get("sees", {})
    )


def write_model(folder: Path, config: Any) -> None:
    """Random weights, a shard at a time, in the layout of the hub."""
    import torch
    import transformers
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    config.architectures = [type(model).__name__]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    number, generator = 0, torch.Generator().manual_seed(0)

    def close() -> None:
        nonlocal number
        number += 1
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, meta in model.state_dict().items():
        if meta.dim() == 1:
            drawn = torch.ones(meta.shape)
        else:
            drawn = torch.randn(meta.shape, generator=generator).mul_(meta[0].numel() ** -0.5)
        shard[name] = drawn.bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) > 1e9:
            close()
    close()
    about = {"metadata": {"total_size": sum(t.numel() * 2 for t in model.state_dict().values())}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(about))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The peak memory so far, as the only number of the list, sampled fifty times a second."""
    peak, done = [memory_in_use("RssAnon")], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory_in_use("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def batches_of(model: Any, count: int) -> list[Any]:
    """Made-up batches of one sample, from a narrow model with the same patches and tokens, which is cheap to build."""
    import torch
    import transformers

    from models.library.hf_models import wrap_hf

    torch.manual_seed(0)
    narrow = config_of(1, 1, **NARROW)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(narrow, name, getattr(model.module.config, name))
    twin = wrap_hf(transformers.Qwen2_5_VLForConditionalGeneration(narrow))
    return [twin.example(1)["general"] for _ in range(count)]


def prune_alone(method: str, folder: str, batches: int) -> dict[str, float]:
    """Seconds of a pruning, of reading all blocks once, and the peak memory; runs in a process of its own."""
    from models import load_model
    from pruners import prune

    with watched() as peak:
        model = load_model(f"hf:{folder}", overrides={"stream": True})
        blocks = len(model.streamed.blocks)
        data = [] if method == "omp" else batches_of(model, batches)
        seconds = timed(lambda: prune(model, data, method, (0.5,)))

    def read() -> None:
        for block in range(blocks):
            with model.streamed.resident(block):
                pass

    return {"seconds": seconds, "read": timed(read), "blocks": blocks, "peak": peak[0]}


def memory(args: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    """Peak and seconds of each method on the 7B model."""
    began = time.perf_counter()
    write_model(folder, config_of(args.layers, args.depth))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{size / 1e9:.1f} GB written in {time.perf_counter() - began:.0f} s", flush=True)
    for method in args.methods:
        command = [sys.executable, "-m", "benchmarks.streaming", "--prune", method, str(folder)]
        command += ["--batches", str(args.batches)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        each = found["seconds"] / found["blocks"]
        read = found["read"] / found["blocks"]
        print(
            f"{method}: {found['seconds']:.0f} s, {each:.1f} s a block; {read:.2f} s to read and widen it", flush=True
        )
        what = f"{size / 1e9:.1f} GB of bf16, pruned by {method} block by block, GiB"
        yield Finding(what, found["peak"] / 2**30, BOUNDS[method])


def overhead(args: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    """Pruning a streamed model against pruning it in memory, alternating, for a model that fits."""
    from models import load_model
    from pruners import prune

    write_model(folder, config_of(8, 8, **NARROW))
    models = {
        way: load_model(f"hf:{folder}", overrides={"stream": True} if way == "streamed" else {})
        for way in ("in one piece", "streamed")
    }
    data = batches_of(models["streamed"], args.batches * 8)
    for method in ("omp", "wanda", "multiflow"):
        given = [] if method == "omp" else data
        best = best_of({way: partial(prune, model, given, method, (0.5,)) for way, model in models.items()}, 3)
        yield Finding(f"{method}, streamed / in one piece", best["streamed"] / best["in one piece"], OVERHEAD)


def on_device(args: argparse.Namespace, device: Any) -> Iterator[Finding]:
    """Prune a streamed model and the same model in memory, both on the device; the share of bits that differ."""
    from benchmarks.on_device import differing
    from models import load_model
    from pruners import prune

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(2, 2, **TINY)
        for number, token in enumerate(
            ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ):
            setattr(config, token, 90 + number)
        write_model(Path(folder), config)
        whole, streamed = (load_model(f"hf:{folder}", overrides={"stream": how}) for how in (False, True))
        data = [whole.example(2)["general"] for _ in range(2)]
        whole.to(device)
        streamed.streamed.move(streamed, device)
        for method in ("omp", "wanda", "multiflow", "sparsegpt"):
            found = [prune(model, [] if method == "omp" else data, method, (0.5,))[0.5] for model in (whole, streamed)]
            yield Finding(f"{method}, streamed, share of bits that differ", differing(*found), 0.0)


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.prune:
        print(json.dumps(prune_alone(*args.prune, args.batches)))
        return
    folder = Path(tempfile.mkdtemp(prefix="streaming-", dir=args.folder))
    try:
        report((overhead if args.overhead else memory)(args, folder), args.json)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
