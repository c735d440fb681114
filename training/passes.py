"""What becomes of samples that do not fill a batch, said once before training."""

from __future__ import annotations

from console.words import agreed, counted
from data.batches import Side


def epochs_notice(side: Side, steps: int, together: int) -> str:
    """Of epochs of `steps` optimizer steps, each of `together` batches; an empty text where all divides evenly.

    side: one that leaves out a last batch that is not full. Epochs that are cut short do not come to the last batch.
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
    """Of a run of so many batches that counts steps alone: what the last batch of a pass over the data is.

    An empty text where it is full, and where the run does not come to it.
    """
    n = len(side.reader.source)
    left = n % side.batch_size
    if not left or batches < side.batches:
        return ""
    used = side.batches > n // side.batch_size
    last = f"the last one has {left}" if used else "the last sample, alone in its batch, is left out"
    there = counted(side.batches, "batch")
    return f"{side.name}: a pass over {counted(n, 'sample')} has {there} of {side.batch_size}; {last}"
