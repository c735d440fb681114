"""Files on disk: written whole or not at all, and hashed so that results can say what made them."""
