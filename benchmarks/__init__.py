"""Scripts that measure what the README claims: ratios of two things timed in one run, on this machine."""
