"""DeepLabv3 and v3+: our own, KerasHub's and KerasCV's."""
