"""Pretraining in stages, as the mini models were made: objectives, and what they ask of a family beside its losses."""
