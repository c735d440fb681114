"""The processor's cores."""

import os


def usable_cores() -> int:
    """Cores that this process may use; where the system does not tell, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
