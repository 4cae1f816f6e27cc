"""Image classifiers, one for each family of backbones."""
