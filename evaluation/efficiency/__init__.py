"""Efficiency: parameters, FLOPs, file sizes, latency and throughput (`python -m evaluation.efficiency`)."""
