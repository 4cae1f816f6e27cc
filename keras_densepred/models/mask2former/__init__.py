"""Mask2Former: masks and classes of learned queries, of instances and of semantic classes."""
