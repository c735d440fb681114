"""Pretraining in stages, as for the minis: objectives, and additional losses of families."""
