"""RetinaNet, ours and on KerasHub's and KerasCV's classes."""
