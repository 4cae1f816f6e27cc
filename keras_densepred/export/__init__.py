"""Trained models as files for other runtimes."""

from keras_densepred.export.description import add_preprocessing, describe
from keras_densepred.export.litert import LITERT_WEIGHTS, export_litert
from keras_densepred.export.onnx import export_onnx
from keras_densepred.export.openvino import export_openvino
from keras_densepred.export.precision import in_float32
from keras_densepred.export.quantization import quantize_onnx
from keras_densepred.export.reading import read_description
from keras_densepred.export.saved_model import export_saved_model
from keras_densepred.export.torch_program import export_torch

__all__ = [
    "LITERT_WEIGHTS",
    "add_preprocessing",
    "describe",
    "export_litert",
    "export_onnx",
    "export_openvino",
    "export_saved_model",
    "export_torch",
    "in_float32",
    "quantize_onnx",
    "read_description",
]
