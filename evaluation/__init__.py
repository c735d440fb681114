"""What a model can do: recall@k, caption scores, VQA accuracy."""
