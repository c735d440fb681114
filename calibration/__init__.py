"""Calibration: streams of batches, running statistics, processes, resume."""
