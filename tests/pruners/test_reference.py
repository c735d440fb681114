"""Scores and masks against the published pruners' numbers on a small random X-VLM (tests/reference/vectors)."""

import numpy as np
import pytest
from safetensors.torch import load_file

from pruners.session import Session
from tests.conftest import REFERENCE

CASES = {
    "omp_global": ("omp", None),
    "omp_local": ("localmp", None),
    "omp_modality": ("omp", "multimodal"),
    "l2": ("l2", None),
    "lamp": ("lamp", None),
    "snip": ("snip", None),
    "multiflow_regionfix": ("multiflow", None),
}
LAYERS = 80


@pytest.fixture(scope="module")
def sessions(xvlm, xvlm_batches):
    import torch

    saved, torch.multinomial = torch.multinomial, lambda weights, n: weights.argmax(-1, keepdim=True)
    try:
        made = {}
        for case, (pruner, allocation) in CASES.items():
            session = Session(xvlm, xvlm_batches, pruner, allocation=allocation)
            made[case] = session, session.masks((0.63, 0.75, 0.9))
        return made
    finally:
        torch.multinomial = saved


@pytest.mark.parametrize("sparsity", [0.63, 0.75, 0.9])
@pytest.mark.parametrize("case", CASES)
def test_masks_agree_up_to_rounding(case, sparsity, sessions, record_property):
    """The published rule removes int(s n) weights and all ties with the last: one weight a threshold may differ."""
    _, masks = sessions[case]
    reference = load_file(REFERENCE / "vectors" / "xvlm" / f"{case}_{round(100 * sparsity)}.safetensors")
    mask = masks[sparsity]
    different = 0
    for name in mask:
        bits = np.unpackbits(reference[f"mask.{name}"].numpy(), count=mask.size(name)).astype(bool)
        different += int((bits != mask[name].numpy().ravel()).sum())
    record_property("different bits", different)
    print(f"{case} {sparsity}: {different} of 688,128 bits differ")
    thresholds = LAYERS if case == "omp_local" else 3
    assert different <= thresholds
    total = sum(map(mask.size, mask))
    pruned = total - sum(map(mask.kept, mask))
    if case == "omp_local":
        assert pruned == sum(round(sparsity * mask.size(name)) for name in mask)
    elif case in ("omp_modality", "multiflow_regionfix"):
        groups = mask.layers_by_modality()
        assert len(groups) == 3
        for names in groups.values():
            size = sum(map(mask.size, names))
            assert size - sum(map(mask.kept, names)) == round(sparsity * size)
    else:
        assert pruned == round(sparsity * total)


def test_multiflow_statistics_scores_and_prior(sessions):
    """Norms to 1e-5 relative, but for channels whose activations are rounding noise (one GELU in its tail)."""
    session, masks = sessions["multiflow_regionfix"]
    reference = load_file(REFERENCE / "vectors" / "xvlm" / "multiflow_regionfix_63.safetensors")
    noisy = 0
    for name, scores in session.pruner.scores().items():
        squared = session.pruner.norms.norms(name).numpy() ** 2
        expected = reference[f"actn_norms.{name}"].numpy()
        alive = expected > 1e-5 * expected.mean()
        np.testing.assert_allclose(squared[alive], expected[alive], rtol=1e-5)
        noisy += int((~alive).sum())
        np.testing.assert_allclose(scores[:, alive], reference[f"score.{name}"].numpy()[:, alive], rtol=1e-5)
        share = reference[f"distribution.{name}"].item()
        assert abs(masks[0.63].sparsity([name]) - share) * masks[0.63].size(name) <= 1.01
    assert noisy <= 6


def test_snip_scores(sessions):
    """Relative to 1e-5 where a gradient is more than rounding noise of its layer."""
    session, _ = sessions["snip"]
    reference = load_file(REFERENCE / "vectors" / "xvlm" / "snip_63.safetensors")
    scores = session.pruner.scores()
    total = sum(layer.sum(dtype=np.float64) for layer in scores.values())
    for name, layer in scores.items():
        expected = reference[f"score.{name}"].numpy()
        np.testing.assert_allclose(layer / total, expected, rtol=1e-5, atol=1e-5 * expected.max())
