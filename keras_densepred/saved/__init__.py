"""A trained model and what its user must know: loading, preprocessing, classes, model card."""
