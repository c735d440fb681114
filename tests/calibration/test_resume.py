"""An interrupted calibration that goes on gives the same masks and scores, bit for bit."""

import pytest

from calibration.resume import Checkpoint
from models import load_model
from pruners.session import Session
from tests.conftest import REFERENCE, reference_batches


class Stopping(Checkpoint):
    """Stops after so many saves."""

    saves = 0

    def offer(self, state):
        super().offer(state)
        self.saves += 1
        if self.saves == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("pruner", ["snip", "itersnip", "tamt"])
def test_a_resumed_run_ends_the_same(pruner, tmp_path):
    """In the second round, or of tamt at the second sparsity. BLIP's losses depend on the batches before."""
    weights = REFERENCE / "vectors" / "blip" / "weights.safetensors"
    model = load_model("blip", config=REFERENCE / "blip.yaml", weights=weights)
    batches = reference_batches("blip", 3) * (2 if pruner == "snip" else 1)
    options = {"epochs": 2, "num_batches": 3} if pruner == "itersnip" else {"lr": 0.01} if pruner == "tamt" else {}

    def made(checkpoint):
        session = Session(model, batches, pruner, checkpoint=checkpoint, **options)
        masks = session.masks([0.5, 0.7])
        scores = session.pruner.scores_by_sparsity
        return masks, {(s, n): array.tolist() for s, scored in scores.items() for n, array in scored.items()}

    whole = made(Checkpoint(tmp_path / "whole", {}, write=False))
    with pytest.raises(KeyboardInterrupt):
        made(Stopping(tmp_path / "unfinished", {}, every=0))
    assert made(Checkpoint(tmp_path / "unfinished", {}, resume=True)) == whole
