"""One file a task: its configuration, losses, evaluation."""
