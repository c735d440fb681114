"""Beam search as the published captioning uses it (transformers 4.31), for any model with next-word logits.

A finished text's score is its log-probability over its total length, the prompt included. transformers 5 leaves the
prompt out, counts the end mark, and compares finished texts with open ones only. Captions can differ by these rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError

NextWord = Callable[[Tensor, Tensor | None], Tensor]
"""ids [b * beams, t], and which row of the call before each row continues [b * beams] (None in the first call) ->
logits of the next word [b * beams, V]. Row i * beams + j belongs to sample i; rows continue those of their own sample.
"""

IMPOSSIBLE = -1.0e9  # score of beams that do not count yet: at first all are equal


@dataclass(frozen=True)
class SearchSettings:
    """Beam search. Lengths include the prompt."""

    beams: int = 3  # number of beams
    max_length: int = 20  # tokens
    min_length: int = 5  # tokens
    count_prompt: bool = True  # whether the length that normalises the score includes the prompt; False: transformers 5

    def __post_init__(self) -> None:
        at_least(self, 1, "beams", "max_length")
        at_least(self, 0, "min_length")
        if self.min_length > self.max_length:
            raise InputError(f"min_length ({self.min_length}) is above max_length ({self.max_length})")


@torch.no_grad()
def beam_search(next_word: NextWord, prompt: Tensor, end: int, pad: int, settings: SearchSettings) -> Tensor:
    """The likeliest continuation of each prompt.

    prompt [b, t] int64, the same t everywhere. Returns ids [b, n], prompt first, without the end mark, padded.
    """
    b, first = prompt.shape
    beams = settings.beams
    ids = torch.repeat_interleave(prompt, beams, dim=0)
    scores = torch.full((b, beams), IMPOSSIBLE, device=prompt.device)
    scores[:, 0] = 0
    finished: list[list[tuple[float, Tensor]]] = [[] for _ in range(b)]
    done = [False] * b

    def normalised(score: float, length: int, ended: bool = False) -> float:
        return score / max(1, length if settings.count_prompt else length - first + ended)

    origin: Tensor | None = None
    while ids.shape[1] < settings.max_length and not all(done):
        length = ids.shape[1]
        words = next_word(ids, origin).float().log_softmax(dim=-1)
        if length < settings.min_length:
            words[:, end] = -torch.inf
        v = words.shape[1]
        total = (scores.reshape(-1, 1) + words).reshape(b, beams * v)
        best, places = total.topk(min(2 * beams, beams * v), dim=1)  # as many candidates as could end
        rows: list[tuple[int, int]] = []
        for i in range(b):
            kept: list[tuple[float, int, int]] = []
            for rank, (score, place) in enumerate(zip(best[i].tolist(), places[i].tolist(), strict=True)):
                beam, word = divmod(place, v)
                if word == end:
                    if rank < beams and not done[i]:
                        _add(finished[i], normalised(score, length, ended=True), ids[i * beams + beam], beams)
                elif len(kept) < beams:
                    kept.append((score, i * beams + beam, word))
            kept += [(IMPOSSIBLE, i * beams, pad)] * (beams - len(kept))
            scores[i] = torch.tensor([score for score, _, _ in kept])
            rows += [(row, word) for _, row, word in kept]
            if len(finished[i]) == beams:  # no open text can become better than the worst finished one
                highest = (best if settings.count_prompt else scores)[i, 0].item()  # scores: of open texts only
                done[i] = done[i] or finished[i][-1][0] >= normalised(highest, length + 1)
        origin, added = ids.new_tensor(rows).unbind(dim=1)
        ids = torch.cat([ids[origin], added[:, None]], dim=1)
    for i in range(b):
        if not done[i]:
            for j in range(beams):
                _add(finished[i], normalised(scores[i, j].item(), ids.shape[1]), ids[i * beams + j], beams)
    texts = [candidates[0][1] for candidates in finished]
    longest = max(map(len, texts))
    return torch.stack([torch.cat([text, text.new_full((longest - len(text),), pad)]) for text in texts])


def _add(finished: list[tuple[float, Tensor]], score: float, ids: Tensor, most: int) -> None:
    """Put a text into a list sorted from best to worst (earlier first among equals), and keep the best."""
    at = next((i for i, (other, _) in enumerate(finished) if score > other), len(finished))
    finished.insert(at, (score, ids))
    del finished[most:]
