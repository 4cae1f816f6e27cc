"""What networks cost and what they look at: multiply-adds, fusion time, gradient maps."""
