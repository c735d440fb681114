"""DINO: the classifier that MULTIFLOW prunes, and the names its weights go by."""
