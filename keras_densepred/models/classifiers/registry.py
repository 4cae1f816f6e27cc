"""The classifier that belongs to a backbone, whichever of our families it is of."""

import keras_hub

from keras_densepred.backbones import CEDNetBackbone, find_backbone
from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.models.classifiers.cednet import CEDNetImageClassifier
from keras_densepred.models.classifiers.pooled import BiCSNetImageClassifier, CSPNetImageClassifier

_CLASSIFIERS: dict[type[PyramidBackbone], type[keras_hub.models.ImageClassifier]] = {
    CEDNetBackbone: CEDNetImageClassifier,
    **dict.fromkeys(BiCSNetImageClassifier.backbone_classes, BiCSNetImageClassifier),
    **dict.fromkeys(CSPNetImageClassifier.backbone_classes, CSPNetImageClassifier),
}


def image_classifier(
    preset: str, num_classes: int, **backbone_options
) -> keras_hub.models.ImageClassifier:
    """Builds the classifier of whichever of our families a backbone is of, with new heads.

    Args:
        preset: name of a built-in preset, such as `"cednet_next_tiny"`, with random weights, or the
            directory of a saved backbone, with its weights; as `backbones.find_backbone`.
        num_classes: number of classes.
        **backbone_options: arguments of the backbone that differ from the preset's; those that the
            family does not have are left out.

    Raises:
        ValueError: if no family has such a preset, or the directory's backbone is of none.
    """
    source = find_backbone(preset)
    known = {name: value for name, value in backbone_options.items() if source.accepts(name)}
    backbone = source.build(**known)
    for backbone_class, classifier in _CLASSIFIERS.items():
        if isinstance(backbone, backbone_class):
            return classifier(backbone, num_classes)
    raise ValueError(
        f"{preset} holds a {type(backbone).__name__}, for which there is no classifier."
    )
