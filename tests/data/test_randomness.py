"""Random numbers as a function of where they are drawn."""

from __future__ import annotations

import pytest
import torch

from data.randomness import seed_generators, seeded


def test_the_numbers_are_those_of_manual_seed() -> None:
    torch.manual_seed(2**62 + 7)
    expected = torch.rand(5)
    seed_generators(2**62 + 7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


def test_generators_of_other_devices_are_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(kind, "_lazy_call", lambda *args, **options: called.append(args))
    with seeded(1, "sample", 2):
        torch.rand(1)
    assert not called
    torch.manual_seed(1)
    assert called


def test_seeded_draws_restore_the_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(1, "sample", 2) as own:
        first = torch.rand(4), own.random()
    assert torch.equal(torch.rand(2), expected)
    with seeded(1, "sample", 2) as own:
        assert torch.equal(torch.rand(4), first[0])
        assert own.random() == first[1]
