"""Data for pruning and finetuning: one file per kind of data set, and the mini world."""
