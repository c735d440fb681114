"""BLIP: the pretraining model, one file a task."""
