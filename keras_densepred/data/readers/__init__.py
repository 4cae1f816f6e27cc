"""Readers: files, folders and TensorFlow Datasets to records."""
