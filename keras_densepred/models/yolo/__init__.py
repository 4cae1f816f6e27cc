"""YOLOv3 with the necks of CSPNet's paper, and KerasCV's YOLOv8 on our backbones."""
