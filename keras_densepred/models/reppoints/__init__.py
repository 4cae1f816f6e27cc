"""RepPoints: objects as sets of points."""
