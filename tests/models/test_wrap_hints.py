"""The first try with a module of one's own: what is forgotten or mixed up is said in words that name the argument."""

import pytest
import torch
from torch import nn

from console.errors import InputError
from models.wrap import wrap
from pruners import prune
from tests.models.test_any_module import hand_example, hand_wrapped

BATCH = {"x": torch.ones(2, 4), "y": torch.zeros(2, dtype=torch.long)}


def two_layers(**options):
    return wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), **options)


@pytest.mark.parametrize(
    ("tokens", "given"),
    [
        (lambda name, batch: batch["text_atts"][:, :5], r"are of shape \(4, 5\)"),
        (lambda name, batch: batch["text_atts"][:, None], r"are of shape \(4, 1, 7\)"),
        (lambda name, batch: batch["text_atts"].tolist(), "are a list"),
    ],
)
@pytest.mark.parametrize("pruner", ["multiflow", "sparsegpt"])
def test_tokens_of_a_wrong_shape(pruner, tokens, given):
    needed = r"the tokens of 'blocks\.0\.q\.weight' must be a mask of shape \(4, 7\).* reads \(4, 7, 16\)"
    with pytest.raises(InputError, match=f"{needed}.*{given}"):
        prune(hand_wrapped(tokens=tokens), [hand_example(4)], pruner, (0.5,))


def test_tokens_of_a_layer_that_reads_none():
    """A mask [4, 7] of a layer that reads [4, 16] might otherwise spread over a wrong axis."""
    with pytest.raises(InputError, match=r"tokens of 'head\.weight' must be a mask of shape \(4,\)"):
        prune(hand_wrapped(exclude=[]), [hand_example(4)], "multiflow", (0.5,))


@pytest.mark.parametrize(("pruner", "argument"), [("multiflow", "forward"), ("snip", "loss"), ("tamt", "loss")])
def test_a_missing_function(pruner, argument):
    message = rf"Sequential cannot be called with the fields x, y of a batch .*give wrap\(module, {argument}=\.\.\.\)"
    with pytest.raises(InputError, match=message):
        prune(two_layers(), [BATCH], pruner, (0.5,))


def test_an_output_without_a_loss():
    class Named(nn.Sequential):
        def forward(self, x, y):
            return super().forward(x)

    model = wrap(Named(nn.Linear(4, 2)))
    assert prune(model, [BATCH], "multiflow", (0.5,))
    with pytest.raises(InputError, match=r"the output of Named has no loss: give wrap\(module, loss="):
        prune(model, [BATCH], "snip", (0.5,))


def test_errors_inside_the_module_stay_what_they_are():
    class Broken(nn.Sequential):
        def forward(self, x, y):
            return super().forward(x, y)

    with pytest.raises(TypeError, match="takes 2 positional arguments"):
        prune(wrap(Broken(nn.Linear(4, 2))), [BATCH], "multiflow", (0.5,))


@pytest.mark.parametrize(
    ("batches", "what"),
    [(BATCH, "a dict"), (BATCH["x"], "a Tensor"), ((BATCH["x"], BATCH["y"]), "a tuple")],
)
def test_one_batch_is_no_list_of_them(batches, what):
    with pytest.raises(InputError, match=f"the batches are {what}, which is one batch, not a list"):
        prune(two_layers(), batches, "multiflow", (0.5,))


@pytest.mark.parametrize("batch", [BATCH["x"], [BATCH["x"], BATCH["y"]], (BATCH["x"], BATCH["y"])])
def test_batches_have_names_for_their_tensors(batch):
    with pytest.raises(InputError, match="calibration batch 0 must be a dict of named tensors, not a "):
        prune(two_layers(), [batch], "multiflow", (0.5,))


def test_a_mask_on_a_module_that_is_not_wrapped():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    mask = prune(wrap(module), [], "omp", (0.5,))[0.5]
    for use in (mask.apply, mask.merge, mask.fitted):
        with pytest.raises(InputError, match=r"a Sequential does not say which .* mask\.apply\(wrap\(module"):
            use(module)
    mask.apply(wrap(module))
    assert sum(int((layer.weight == 0).sum()) for layer in module) == 12


def test_all_zero_weights_are_pruned_with_a_warning(capsys):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    prune(wrap(module), [], "omp", (0.5,))
    assert capsys.readouterr().err == ""
    nn.init.zeros_(module[1].weight)
    prune(wrap(module), [], "omp", (0.5,))
    assert "warning: all weights of 1 of 2 layers are zero (first: 1.weight)" in capsys.readouterr().err


def test_layers_called_by_keyword():
    """`layer(input=x)` is seen as `layer(x)` is."""

    class Named(nn.Module):
        def __init__(self, by_name):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.by_name = nn.Linear(4, 4), by_name

        def forward(self, x):
            return self.layer(input=x) if self.by_name else self.layer(x)

    batch = {"x": torch.arange(8.0).reshape(2, 4)}
    one, other = (prune(wrap(Named(by_name)), [batch], "multiflow", (0.5,))[0.5] for by_name in (True, False))
    assert one == other
