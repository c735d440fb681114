"""A model's towers are rows of equal blocks, in which nearly all of its time and its memory goes."""

from __future__ import annotations

from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of lists of two or more modules of one class with linear layers inside; none within another."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for parent in model.modules():  # outer modules come before what they hold
        if id(parent) in inside or not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        members = list(parent)
        if len(members) > 1 and len({type(member) for member in members}) == 1 and all(map(_has_linear, members)):
            found += members
            inside |= {id(module) for member in members for module in member.modules()}
    return found


def _has_linear(member: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in member.modules() if module is not member)
