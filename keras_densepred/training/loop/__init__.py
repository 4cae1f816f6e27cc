"""The training loop: fit, exact resume, checkpoints, stopping at numbers that are not finite."""
