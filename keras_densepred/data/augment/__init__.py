"""Augmentation: of objects, of semantic labels, for classification, and Darknet's."""
