"""X-VLM: the pretraining model, one file a task."""
