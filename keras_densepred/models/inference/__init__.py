"""Inference: batch-norm folding, sliding windows, several scales."""
