"""A small Mask2Former with something to find, for exported files to be compared by."""

from keras_densepred.models import Mask2Former
from tests.contracts.families import OwnBackbone
from tests.weights import set_deterministic_weights


def mask2former(**options):
    sizes = dict(width=16, num_queries=6, encoder_layers=1, decoder_layers=2, num_heads=2)
    sizes |= dict(encoder_hidden=16, decoder_hidden=16, max_detections=8, mask_size=12)
    model = Mask2Former(OwnBackbone(), 3, **sizes, **options)
    set_deterministic_weights(model)
    return model


def mask2former_centres():
    return mask2former(query_selection="centres")
