"""The checks behind `models.check`, each a function from a model to a sentence; a failed one raises Wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from calibration.layer_inputs import Read, squares, watch_inputs
from console.errors import InputError
from console.words import counted, share_of_matrices
from models.base import ImageShape, Model
from models.layers import AttentionWeight, is_conv1d, weights_in_matrices
from models.library.finding import skipped_lines
from models.parts import inventory, masked
from models.surgery import cut
from models.tasks import Answerer, Captioner, Classifier, ImageEmbedder, ImageEncoder, Locator, Retriever, Verifier

PROTOCOLS = (ImageEmbedder, ImageEncoder, Retriever, Locator, Captioner, Answerer, Classifier, Verifier)
TEXT_FIELDS = (("text_ids", "text_atts"), ("input_ids", "attention_mask"))
LONGEST = 300  # characters of an unforeseen error; torch's can fill pages


class Wrong(Exception):
    """A failed check, in words."""


def check_model(model: Model, name: str) -> bool:
    """Run all checks, print a table, return whether all passed."""
    table = Table(title=f"conformance of {escape(name)}", show_lines=False)
    table.add_column("")
    table.add_column("check")
    table.add_column("what was seen")
    passed = True
    for label, check in CHECKS.items():
        seen, right = _outcome(label, check, model)
        table.add_row("[green]passed[/]" if right else "[red]FAILED[/]", label, escape(seen))
        passed &= right
        if label == "questions" and not right:
            break  # the other checks ask these questions
    Console(soft_wrap=False).print(table)
    return passed


def _outcome(label: str, check: Callable[[Model], str], model: Model) -> tuple[str, bool]:
    """The finding of a check, and whether the model passed; the model is restored."""
    from calibration.preserve import preserved

    try:
        with torch.random.fork_rng(devices=[]), nullcontext() if label == "questions" else preserved(model, True):
            torch.manual_seed(0)
            return check(model), True
    except (Wrong, InputError) as error:
        return str(error), False
    except Exception as error:  # a check must report any defect of an unfinished model, not end the run
        text = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {text[:LONGEST]}" + (" ..." if len(text) > LONGEST else ""), False


def check_protocol(model: Model) -> str:
    """All questions are answered, and answers are consistent."""
    if not isinstance(model, Model):
        raise Wrong(f"a {type(model).__name__} lacks the questions of models/base.py: wrap it, or derive it from Model")
    if not model.sides:
        raise Wrong("it has no sides: name at least one kind of batch")
    if not isinstance(model.image_shape, ImageShape):
        raise Wrong(f"image_shape is {model.image_shape!r}, not an ImageShape")
    if model.follows_state and type(model).pass_by is Model.pass_by:
        raise Wrong("it follows its state, so it needs pass_by(), which updates the state for another process's batch")
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for tensor in (*model.moving_tensors(), *model.training_only()):
        if id(tensor) not in own:
            shape = tuple(tensor.shape)
            raise Wrong(f"a tensor {shape} of moving_tensors() or training_only() is no parameter or buffer of it")
    layers = model.prunable_layers()
    for name, copied in model.followers().items():
        if name not in layers or copied.weight.shape != layers[name].weight.shape:
            raise Wrong(f"followers() names '{name}', which is not a prunable layer of the shape of its follower")
    serves = [protocol.__name__ for protocol in PROTOCOLS if isinstance(model, protocol)]
    return f"sides: {', '.join(model.sides)}" + f"; it is a {', '.join(serves)}" * bool(serves)


def check_layers(model: Model) -> str:
    """Prunable layers: right names, right kinds, no tensor twice."""
    layers = model.prunable_layers()
    if not layers:
        raise Wrong("prunable_layers() is empty")
    state, owners = model.state_dict(keep_vars=True), {}
    for name, layer in layers.items():
        if name not in state:
            raise Wrong(f"'{name}' is not a name of the state dict")
        if state[name] is not layer.weight:
            raise Wrong(f"'{name}' is a different tensor than the layer's weight")
        if not (isinstance(layer, nn.Linear | nn.Conv2d | AttentionWeight) or is_conv1d(layer)):
            raise Wrong(
                f"'{name}' belongs to a {type(layer).__name__}, which is none of the layers of models/layers.py"
            )
        if id(layer.weight) in owners:
            raise Wrong(f"'{name}' and '{owners[id(layer.weight)]}' are one tensor: name it once")
        owners[id(layer.weight)] = name
    prunable, whole = weights_in_matrices(model)
    share = f"{counted(len(layers), 'layer')}, {share_of_matrices(prunable, whole)}"
    return share + "".join(f"; not {line}" for line in skipped_lines(model.skipped))


def check_ties(model: Model) -> str:
    """Names that share a tensor still do after a copy and a change of type."""
    groups = _tied(model)
    for kind, other in (("a copy", copy.deepcopy(model)), ("a change of type", copy.deepcopy(model).to(torch.float64))):
        if _tied(other) != groups:
            raise Wrong(f"tensors that were tied are not after {kind}: tie parameters, do not copy values")
    return f"{len(groups)} group{'s' * (len(groups) != 1)} of tied names"


def check_modalities(model: Model) -> str:
    """Every prunable parameter has a modality."""
    sizes: dict[str, int] = {}
    for name, layer in model.prunable_layers().items():
        modality = model.modality_of(name)
        if not isinstance(modality, str) or not modality:
            raise Wrong(f"modality_of('{name}') is {modality!r}, not a name")
        sizes[modality] = sizes.get(modality, 0) + layer.weight.numel()
    return ", ".join(f"{modality} {size:,}" for modality, size in sizes.items())


def check_losses(model: Model) -> str:
    """Losses are finite scalars, the pruners' loss has a gradient for every prunable weight."""
    found = []
    for side, batch in model.example(4).items():
        for name, loss in model.losses(batch).items():
            if loss.dim() != 0 or not torch.isfinite(loss):
                raise Wrong(f"the loss '{name}' of a {side} batch is {loss!r}, not a finite scalar")
            found.append(f"{side} {name} {loss.item():.3g}")
    layers = model.prunable_layers()
    total = torch.stack([model.loss(batch) for batch in model.example(4).values()]).sum()
    if not total.requires_grad:
        raise Wrong("the loss has no gradient at all: it must be computed from the layers' outputs, without no_grad()")
    gradients = torch.autograd.grad(total, [layer.weight for layer in layers.values()], allow_unused=True)
    for name, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise Wrong(f"the loss gives no gradient to '{name}': exclude the layer or let the loss use it")
        if not torch.isfinite(gradient).all():
            raise Wrong(f"the gradient of '{name}' has values that are NaN or infinite")
    return "; ".join(found)


def check_observation(model: Model) -> str:
    """`observe` calls every layer, and `real_tokens` fits the inputs of the layers that it masks."""
    often: set[str] = set()
    for side, batch in model.example(3).items():
        met = dict.fromkeys(model.prunable_layers(), 0)

        def look(read: Read, met: dict[str, int] = met) -> None:
            met[read.name] += read.block == 0

        watch_inputs(model, batch, look)
        for name, times in met.items():
            if not times:
                raise Wrong(f"observe() of a {side} batch never calls '{name}': let it use the layer, or exclude it")
        often |= {name for name, times in met.items() if times > 1}
    several = f", {len(often)} of them more than once (first: {min(often)})" if often else ""
    return f"each layer on {' and '.join(model.sides)} batches{several}"


def check_padding(model: Model) -> str:
    """The content of padding does not change any statistic."""
    padded = 0
    for side, batch in model.example(4).items():
        ids, atts = next(((i, a) for i, a in TEXT_FIELDS if i in batch and a in batch), (None, None))
        if ids is None or bool(batch[atts].all()):
            continue
        padded += 1
        other = batch | {ids: torch.where(batch[atts] == 0, batch[ids].flip(0).clamp(min=5), batch[ids])}
        both = []
        for variant in (batch, other):
            sums: dict[str, Tensor] = {}

            def look(read: Read, sums: dict[str, Tensor] = sums) -> None:
                sums[read.name] = sums.get(read.name, 0) + squares(read)

            watch_inputs(model, variant, look)
            both.append(sums)
        for name, of_layer in both[0].items():
            if not torch.allclose(of_layer, both[1][name], rtol=1e-3, atol=1e-5):
                raise Wrong(
                    f"other words under the padding of a {side} batch change the input statistics of '{name}': "
                    "mask padding in attention, and leave it out in real_tokens()"
                )
    return f"checked on {padded} of {len(model.sides)} sides" if padded else "no side has padded text"


def check_state_dict(model: Model) -> str:
    """Saved, loaded into a copy, the model gives the same losses."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(state)
    for side, batch in model.example(3).items():
        values = []
        for one in (model, fresh):
            torch.manual_seed(1)
            with torch.no_grad():
                values.append(copy.deepcopy(one).loss(batch))
        if not torch.equal(*values):
            raise Wrong(f"after a round trip the loss of a {side} batch is {values[1]:.6g} instead of {values[0]:.6g}")
    return f"{len(state)} tensors"


def check_pruning(model: Model) -> str:
    """MULTIFLOW and SNIP prune it to the count, and leave it as it was."""
    from pruners import prune

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [model.example(4) for _ in range(2)]
    for pruner in ("multiflow", "snip"):
        mask = prune(model, batches, pruner, (0.5,))[0.5]
        if abs(mask.sparsity() - 0.5) > 0.01:
            raise Wrong(f"{pruner} reaches {mask.sparsity():.3f} instead of 0.5")
        for name, tensor in model.state_dict().items():
            if not torch.equal(tensor, before[name]):
                raise Wrong(f"{pruner} leaves '{name}' changed: name it in moving_tensors()")
    return "multiflow and snip at 50 %"


def check_parts(model: Model) -> str:
    """Without half of all removable units, the losses equal those under the mask."""
    found = inventory(model)[0]
    if not found:
        return "it names no removable heads, neurons or channels"
    kept = {one.name: torch.arange(one.count) % 2 == 0 for one in found}
    small, other = cut(model, kept).eval(), copy.deepcopy(model).eval()
    layers, followers = other.prunable_layers(), other.followers()
    with torch.no_grad():
        for name, mask in masked(model, kept).items():
            for layer in (layers[name], *([followers[name]] if name in followers else [])):
                layer.weight.masked_fill_(~mask, 0)
    for side, batch in model.example(3).items():
        values = []
        for one in (other, small):
            torch.manual_seed(1)
            with torch.no_grad():
                values.append(one.loss(batch))
        if not torch.allclose(*values, rtol=1e-4, atol=1e-5):
            raise Wrong(
                f"without half of its units the loss of a {side} batch is {values[1]:.6g}, and {values[0]:.6g} under "
                "their mask: parts() must name all that feeds them, and only what treats each by itself"
            )
    kinds = {kind: sum(one.count for one in found if one.kind == kind) for kind in ("heads", "neurons", "channels")}
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)


CHECKS: dict[str, Callable[[Model], str]] = {
    "questions": check_protocol,
    "prunable layers": check_layers,
    "ties": check_ties,
    "modalities": check_modalities,
    "losses and gradients": check_losses,
    "observation": check_observation,
    "padding": check_padding,
    "state dict": check_state_dict,
    "pruning": check_pruning,
    "parts": check_parts,
}


def _tied(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return sorted(names for names in groups.values() if len(names) > 1)
