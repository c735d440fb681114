"""Retrieval as a finetuning task: contrastive and matching losses, recalls of both kinds of scores."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning.fabric import Fabric
from torch import Tensor, nn

from data.readers import Batch
from data.retrieval import Gallery
from data.sources import Files
from data.tokenizer import Tokenizer
from evaluation.retrieval import RetrievalSettings, evaluate_retrieval
from models.gather import gather_processes
from training.finetuning import Finetuning, Metrics


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Finetuning):
    """val, test: the galleries, one annotation file each. alpha: weight of momentum targets (BLIP), ramped at first."""

    val: Files
    test: Files
    evaluation: RetrievalSettings = field(default_factory=RetrievalSettings)
    max_words: int = 30
    alpha: float = 0.4


class Retrieval:
    """See `training.finetuning.Task`."""

    name = "retrieval"
    decides = "r_mean"

    def __init__(self, config: RetrievalConfig, model: nn.Module, tokenizer: Tokenizer, limit: int | None = None):
        self._config, self._tokenizer = config, tokenizer
        self._galleries = {
            split: Gallery(files, model.image_shape, config.max_words, limit)
            for split, files in (("val", config.val), ("test", config.test))
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Contrastive loss against the features of all processes, and matching loss."""
        if model.stateful:  # BLIP: the momentum model's targets come in over the first epoch
            return model(batch, gather=gather_processes, alpha=self._config.alpha * min(1.0, progress))
        return model(batch, gather=gather_processes)

    def evaluate(self, fabric: Fabric, model: nn.Module, split: str, epoch: int | None) -> Metrics:
        """Recalls after re-ranking under the published names, and those of similarity alone under `itc`."""
        found = evaluate_retrieval(model, self._galleries[split], self._tokenizer, self._config.evaluation)
        return {**found["itm"], "itc": found["itc"]}
