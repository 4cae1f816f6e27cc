"""The classifier that belongs to a backbone, whichever family it is of."""

from typing import Any

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.bicsnet import BiCSNetBackbone
from keras_densepred.backbones.bicsnet_lite import BiCSNetLiteBackbone
from keras_densepred.backbones.cednet import CEDNetBackbone
from keras_densepred.backbones.csp_densenet import CSPDenseNetBackbone, PeleeNetBackbone
from keras_densepred.backbones.cspnet import CSPNetBackbone
from keras_densepred.backbones.elastic_densenet import ElasticDenseNetBackbone
from keras_densepred.backbones.find import load_backbone
from keras_densepred.models.classifier import Classifier
from keras_densepred.models.classifiers.cednet import CEDNetImageClassifier
from keras_densepred.models.classifiers.pooled import (
    BiCSNetImageClassifier,
    CSPNetImageClassifier,
    PooledImageClassifier,
)

_HEAD_OPTIONS = ("activation", "head_dtype", "preprocessor")
_CLASSIFIERS: dict[type[PyramidBackbone], type[Classifier]] = {}


def register_classifier(
    backbone_class: type[PyramidBackbone], classifier_class: type[Classifier]
) -> None:
    """Makes a classifier that of a family of backbones, and of the classes derived from it.

    Families that nobody registers get a `PooledImageClassifier`.

    Args:
        backbone_class: the family.
        classifier_class: the classifier.
    """
    _CLASSIFIERS[backbone_class] = classifier_class


def classifier_class(backbone_class: type[PyramidBackbone]) -> type[Classifier]:
    """The classifier of a family: its own, else that of the nearest class it is derived from.

    Raises:
        ValueError: if it is no family of pyramid backbones.
    """
    for base in backbone_class.__mro__:
        if base in _CLASSIFIERS:
            return _CLASSIFIERS[base]
    raise ValueError(
        f"{backbone_class.__name__} is no PyramidBackbone, and only these have a classifier."
    )


def image_classifier(
    backbone: str | PyramidBackbone, num_classes: int, **options: Any
) -> Classifier:
    """Builds the classifier of whichever family a backbone is of, with new heads.

    Args:
        backbone: a backbone, or name of a built-in preset such as `"cednet_next_tiny"` (random
            weights), or directory or handle of a saved backbone (its weights), as
            `backbones.load_backbone` takes it.
        num_classes: number of classes.
        **options: arguments of the classifier (`activation`, `head_dtype`, `preprocessor`), and of
            the backbone where it is given by its preset.

    Raises:
        ValueError: if there is no such preset, or neither classifier nor backbone has an option.
    """
    head = {name: options.pop(name) for name in _HEAD_OPTIONS if name in options}
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, **options)
    elif options:
        raise ValueError(
            f"Classifiers have no option {', '.join(options)}, and the backbone is already built: "
            "build it with that, or give the name of its preset."
        )
    return classifier_class(type(backbone))(backbone, num_classes, **head)


register_classifier(PyramidBackbone, PooledImageClassifier)
register_classifier(CEDNetBackbone, CEDNetImageClassifier)
register_classifier(BiCSNetBackbone, BiCSNetImageClassifier)
register_classifier(BiCSNetLiteBackbone, BiCSNetImageClassifier)
register_classifier(CSPNetBackbone, CSPNetImageClassifier)
register_classifier(CSPDenseNetBackbone, CSPNetImageClassifier)
register_classifier(PeleeNetBackbone, CSPNetImageClassifier)
register_classifier(ElasticDenseNetBackbone, CSPNetImageClassifier)
