"""Counted things, as English has them."""

import pytest

from console.words import agreed, counted, place_of


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (counted(1, "key", "is"), "1 key is"),
        (counted(0, "key", "is"), "0 keys are"),
        (counted(2, "key", "is"), "2 keys are"),
        (counted(1, "layer"), "1 layer"),
        (counted(12_000, "evaluation image"), "12,000 evaluation images"),
        (counted(1, "shard", "is", of=3), "1 of 3 shards is"),
        (counted(2, "shard", "is", of=3), "2 of 3 shards are"),
        (counted(1, "shard", "is", of=1), "1 of 1 shard is"),
        (counted(2, "batch"), "2 batches"),
        (counted(2, "process"), "2 processes"),
        (counted(2, "epoch"), "2 epochs"),
        (counted(3, "query", "was"), "3 queries were"),
        (counted(2, "play", "has"), "2 plays have"),
        (counted(1, "run", "saves"), "1 run saves"),
        (counted(2, "run", "saves"), "2 runs save"),
        (agreed(1, "belongs"), "belongs"),
        (agreed(4, "belongs"), "belong"),
        (counted(2, "hidden entry"), "2 hidden entries"),
        (place_of(1), "its place"),
        (place_of(2), "the place of each"),
    ],
)
def test_numbers_and_what_they_count(words, expected):
    assert words == expected
