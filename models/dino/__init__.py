"""DINO: the classifier that MULTIFLOW prunes, and the names of its weights."""
