"""Benchmarks behind docs/cost.md: ratios of timings within one run."""
