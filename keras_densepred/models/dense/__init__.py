"""A one-stage detector without anchors whose targets follow its own predictions."""
