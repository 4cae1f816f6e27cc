"""What networks cost and what they look at: multiply-adds, fusion time, gradient maps."""

__all__ = [
    "darknet_costs",
    "fusion_time",
    "gradient_figures",
    "gradient_maps",
    "multiply_adds",
]
