"""Deformable DETR: detections from learned or selected queries, without suppression."""
