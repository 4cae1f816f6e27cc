"""The built-in data set: generated pictures of shapes, no files needed."""
