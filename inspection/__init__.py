"""Analyses of masks: layers, comparisons, stability over calibration data; intrinsic dimensions."""
