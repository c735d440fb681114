"""The one training loop: accumulation, precision, schedule, snapshots, resume, evaluation."""
