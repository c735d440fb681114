"""What the data says of a model: streams of batches, running sums, processes, resuming."""
