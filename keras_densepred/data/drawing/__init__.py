"""Boxes, labels and masks drawn on images."""
