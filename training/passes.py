"""Notices, before training, on samples that do not fill a batch."""

from __future__ import annotations

from console.words import agreed, counted
from data.batches import Side


def epochs_notice(side: Side, steps: int, together: int) -> str:
    """Notice on epochs of `steps` optimizer steps, each of `together` batches; empty if all divides evenly.

    side: its last batch, if not full, is dropped. Epochs that `short_epoch` shortens end before it: no notice.
    """
    n, over = len(side.reader.source), side.batches % together
    left = n % side.batch_size
    if steps * together < side.batches or not (left or over):
        return ""
    parts = []
    if left:
        parts.append(
            f"{counted(left, 'sample', 'does', of=n)} not fill a batch of {side.batch_size} and {agreed(left, 'is')} "
            "left out, others in every epoch"
        )
    if over:
        parts.append(
            f"the last step takes {together - over} of its {together} batches from the next pass over the data"
        )
    return f"an epoch has {counted(steps, 'step')}: {'; '.join(parts)}"


def passes_notice(side: Side, batches: int) -> str:
    """Notice on the last batch of a pass over the data, for a run that counts steps only.

    Empty if that batch is full, or never reached.
    """
    n = len(side.reader.source)
    left = n % side.batch_size
    if not left or batches < side.batches:
        return ""
    last = f"the last one has {left}"
    if side.batches == n // side.batch_size:
        last = f"{counted(left, 'sample', 'does')} not fill one and {agreed(left, 'is')} left out"
    there = counted(side.batches, "batch")
    return f"{side.name}: a pass over {counted(n, 'sample')} has {there} of {side.batch_size}; {last}"
