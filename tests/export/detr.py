"""A small Deformable DETR with something to find, for exported files to be compared by."""

from keras_densepred.models import DeformableDETR, TopDetections
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights


def detr(**options):
    sizes = dict(num_queries=6, num_heads=2, num_points=1, feed_forward_width=16)
    sizes |= dict(encoder_layers=1, decoder_layers=1)
    decoder = TopDetections(8, 0.01)
    model = DeformableDETR(ToyPyramid(), 3, prediction_decoder=decoder, **sizes, **options)
    set_deterministic_weights(model)
    return model
