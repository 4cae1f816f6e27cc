"""UperNet on any backbone with P2 to P5, and the head of CEDNet that takes its place."""
