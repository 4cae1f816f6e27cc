"""What a run shows and writes: progress, metrics, curves, drawn predictions."""
