"""Masks: which weights stay, how that is chosen exactly, and the files it is kept in."""
