"""On what models are pruned and finetuned: one file a kind of data set, and the mini world."""
