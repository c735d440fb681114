"""Metrics: recall@k, caption scores, VQA accuracy, zero-shot evaluation."""
