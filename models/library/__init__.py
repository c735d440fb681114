"""Models of other libraries, and any module: what of them can be pruned."""
