"""Print the commands with which other tools evaluate folders of models; with --run, also run them.

python -m evaluation.harnesses FOLDER PRUNED_FOLDER --tool lmms-eval --tasks pope textvqa_val --run
Options are those of lmms-eval 0.7, lm-eval 0.4, VLMEvalKit of 2026 and clip_benchmark 1.6.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from console.command_line import Parser
from console.errors import InputError, nearest, run_command
from storage.atomic import write_json

ENDING = "ForConditionalGeneration"


class Tool(NamedTuple):
    """models: class of transformers, without ENDING -> the tool's name for it. package: its module."""

    command: Callable[[argparse.Namespace, Path, str], list[str]]
    models: Mapping[str, str]
    package: str
    install: str
    tasks: tuple[str, ...]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="folders of Hugging Face models, the dense one first"
    )
    parser.add_argument("--tool", default="lmms-eval", help=f"one of {', '.join(TOOLS)} (default: lmms-eval)")
    parser.add_argument("--tasks", nargs="+", help="tasks or data sets, as the tool calls them (default: one or two)")
    parser.add_argument(
        "--limit", type=int, help="samples of each task, as a trial (of lmms-eval, lm-eval; default: all)"
    )
    parser.add_argument("--include_path", metavar="FOLDER", help="your own tasks (of lmms-eval, lm-eval)")
    parser.add_argument("--device", help="such as cpu (of lmms-eval, lm-eval; default: theirs, a GPU)")
    parser.add_argument("--batch_size", type=int, default=1, help="default: 1; VLMEvalKit has none")
    parser.add_argument("--output_dir", default="runs/harnesses", help="where results go (default: runs/harnesses)")
    parser.add_argument("--kit", default="VLMEvalKit", help="folder of VLMEvalKit's repository (default: VLMEvalKit)")
    parser.add_argument("--run", action="store_true", help="run the commands, one after another")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the commands, and run them if asked to."""
    args = parse_args()
    if args.tool not in TOOLS:
        raise InputError(f"--tool {args.tool} is unknown{nearest(args.tool, TOOLS)}: choose one of {', '.join(TOOLS)}")
    for name in ("limit", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}")
    for name in ("limit", "include_path", "device"):
        if getattr(args, name) is not None and args.tool in (KIT, CLIP):
            raise InputError(f"{args.tool} has nothing like --{name}: leave it out")
    names = [Path(folder).name for folder in args.folders]
    if args.tool in (KIT, CLIP) and len(set(names)) < len(names):
        raise InputError(f"{args.tool} names results by their folder, and two have the same name: rename one")
    tool = TOOLS[args.tool]
    args.tasks = args.tasks or tool.tasks
    commands = [tool.command(args, folder, model_of(args.tool, folder)) for folder in map(Path, args.folders)]
    for words in commands:
        print(shlex.join(words))
    if not args.run:
        return
    if args.tool != KIT and importlib.util.find_spec(tool.package) is None:
        raise InputError(f"{args.tool} is not installed: {tool.install}")
    for words in commands:
        if code := subprocess.run([sys.executable, *words[1:]], check=False).returncode:
            raise InputError(f"{args.tool} ended with code {code}, see above: {shlex.join(words)}")


def model_of(tool: str, folder: Path) -> str:
    """A tool's name for the class of a folder's model; InputError if it does not support the class."""
    file = folder / ("open_clip_config.json" if tool == CLIP else "config.json")
    if tool == CLIP and folder.is_dir() and not file.is_file():
        raise InputError(
            f"clip_benchmark reads OpenCLIP's folders, and {folder} has no {file.name}: for a CLIP of transformers "
            "use python -m evaluation.zero_shot"
        )
    if not file.is_file():
        raise InputError(f"there is no {file}: give a folder of a model, as prune.py --stream writes it")
    if tool == CLIP:
        return "open_clip"
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["architectures"][0]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{file} names no class in 'architectures': give the folder of a model") from error
    known = TOOLS[tool].models
    if (own := known.get(str(name).removesuffix(ENDING))) is None:
        others = [other for other, of in TOOLS.items() if str(name).removesuffix(ENDING) in of.models]
        hint = f"use --tool {others[0]}" if others else f"{tool} has {', '.join(known)}"
        raise InputError(f"{tool} has no model for a {name}, which {folder} is: {hint}")
    return own


def lmms_eval(args: argparse.Namespace, folder: Path, model: str) -> list[str]:
    """The command of EvolvingLMMs-Lab/lmms-eval."""
    where = f",device_map={args.device},device={args.device}" if args.device else ""
    return ["python", "-m", "lmms_eval", *_harness(args, folder, model, where)]


def lm_eval(args: argparse.Namespace, folder: Path, model: str) -> list[str]:
    """The command of EleutherAI/lm-evaluation-harness, whose tasks with pictures need a chat template."""
    device = ["--device", args.device] if args.device else []
    return ["python", "-m", "lm_eval", *_harness(args, folder, model), *device, "--apply_chat_template"]


def _harness(args: argparse.Namespace, folder: Path, model: str, more: str = "") -> list[str]:
    """The options that both have, since one is a fork of the other; --log_samples saves answers, for loyalty."""
    if re.search(r"[,=]", str(folder)):
        raise InputError(f"{args.tool} takes the folder in a list a=b,c=d, and {folder} has a comma or =: rename it")
    limit = [] if args.limit is None else ["--limit", str(args.limit)]
    own = ["--include_path", args.include_path] if args.include_path else []
    words = ["--model", model, "--model_args", f"pretrained={folder}{more}", "--tasks", ",".join(args.tasks), *own]
    return [*words, "--batch_size", str(args.batch_size), *limit, "--log_samples", "--output_path", args.output_dir]


def vlmevalkit(args: argparse.Namespace, folder: Path, model: str) -> list[str]:
    """The command of open-compass/VLMEvalKit; also writes the file that names the folder and the data sets."""
    newer = re.search(r"2\.5|2_5|qwen25", str(folder.absolute()).lower()) is not None
    wanted = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0].startswith("Qwen2_5")
    if model == "Qwen2VLChat" and newer != wanted:  # VLMEvalKit chooses the class by the path
        raise InputError(
            "VLMEvalKit loads a path with 2.5, 2_5 or qwen25 as Qwen2.5-VL and any other as Qwen2-VL, so "
            f"{folder} would be loaded as the wrong class: rename it"
        )
    for task in args.tasks:
        if task not in DATA:
            raise InputError(
                f"no class is known for VLMEvalKit's '{task}'{nearest(task, DATA)}: there are {', '.join(DATA)}"
            )
    content = {
        "model": {folder.name: {"class": model, "model_path": str(folder.absolute())}},
        "data": {task: {"class": DATA[task], "dataset": task} for task in args.tasks},
    }
    file = Path(args.output_dir) / f"{folder.name}.json"
    write_json(file, content)
    script = Path(args.kit) / "run.py"
    if args.run and not script.is_file():
        raise InputError(f"there is no {script}: {TOOLS[KIT].install}")
    return ["python", str(script), "--config", str(file), "--work-dir", args.output_dir]


def clip_benchmark(args: argparse.Namespace, folder: Path, model: str) -> list[str]:
    """The command of LAION-AI/CLIP_benchmark, for a folder of OpenCLIP."""
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # it makes none, and would fail after the evaluation
    output = str(Path(args.output_dir) / f"{folder.name}_{{dataset}}.json")
    words = ["--model_type", model, "--model", f"local-dir:{folder}", "--pretrained", "", "--dataset", *args.tasks]
    batch = ["--batch_size", str(args.batch_size)]
    return ["python", "-m", "clip_benchmark.cli", "eval", *words, *batch, "--output", output]


DATA = dict.fromkeys(("POPE", "MME", "HallusionBench", "AMBER"), "ImageYORNDataset")
DATA |= dict.fromkeys(
    ("MMBench_DEV_EN_V11", "MMStar", "AI2D_TEST", "SEEDBench_IMG", "ScienceQA_VAL"), "ImageMCQDataset"
)
DATA |= dict.fromkeys(("TextVQA_VAL", "ChartQA_TEST", "GQA_TestDev_Balanced", "DocVQA_VAL"), "ImageVQADataset")
"""VLMEvalKit's data set -> its class."""

KIT, CLIP = "vlmevalkit", "clip_benchmark"
LMMS = {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl", "Qwen3VL": "qwen3_vl", "InternVL": "internvl_hf"}
LMMS |= {"Llava": "llava_hf", "LlavaOnevision": "llava_hf", "Gemma3": "gemma3"}
LMMS |= {"Idefics3": "huggingface", "SmolVLM": "huggingface"}
KITS = {"Qwen2VL": "Qwen2VLChat", "Qwen2_5_VL": "Qwen2VLChat", "Qwen3VL": "Qwen3VLChat"}
KITS |= {"LlavaOnevision": "LLaVA_OneVision_HF", "Gemma3": "Gemma3", "PaliGemma": "PaliGemma"}
KITS |= {"Idefics3": "IDEFICS2", "SmolVLM": "SmolVLM2"}

TOOLS = {
    "lmms-eval": Tool(lmms_eval, LMMS, "lmms_eval", "pip install lmms-eval 'filelock<4'", ("pope", "textvqa_val")),
    KIT: Tool(
        vlmevalkit, KITS, "vlmeval", "clone open-compass/VLMEvalKit, pip install -e it, and name its folder with --kit",
        ("POPE", "MMBench_DEV_EN_V11"),
    ),
    "lm-eval": Tool(
        lm_eval, dict.fromkeys(LMMS, "hf-multimodal"), "lm_eval", "pip install 'lm-eval[hf]'", ("mmmu_val",)
    ),
    CLIP: Tool(clip_benchmark, {}, "clip_benchmark", "pip install clip-benchmark 'numpy<2.4'", ("imagenet1k",)),
}  # fmt: skip
"""Name -> tool."""


if __name__ == "__main__":
    run_command(main)
