"""Training: one loop with accumulation, precision, schedule, snapshots, resume and evaluation."""
