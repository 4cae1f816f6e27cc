"""Batches from records, for training and for evaluation, on Grain."""
