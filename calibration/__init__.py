"""Calibration: streams of batches, running statistics, processes, resume."""

from __future__ import annotations

from typing import Any

from configs.registry import Registry

MEASURES: Registry[Any] = Registry(
    "measure",
    {
        "das": "calibration.diversity:Diversity",
        "ecoflap": "calibration.loss_changes:LossChanges",
    },
)
"""Allocation -> statistic whose `importance` ranks layers for it, in a pass of its own.

uses_loss: whether it needs the loss, and so the whole model in memory. steps: the most steps of the data that it reads;
None: all.
"""
