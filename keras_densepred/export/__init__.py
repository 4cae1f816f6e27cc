"""Trained models as files for other runtimes."""

from keras_densepred.export.onnx import export_onnx
from keras_densepred.export.quantization import quantize_onnx

__all__ = ["export_onnx", "quantize_onnx"]
