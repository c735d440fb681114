"""Scripts that measure what docs/cost.md claims: ratios of two things timed in one run, on this machine."""
