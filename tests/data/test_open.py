"""Where a detection recipe's data come from."""

import pytest

from keras_densepred import data

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("with_masks", [False, True])
def test_built_in_shapes_and_folders(tmp_path, with_masks):
    built_in = data.open_detection(shapes_size=64, seed=3, with_masks=with_masks)
    assert [len(split) for split in built_in] == [1600, 200]
    for split in ("train", "val"):
        data.ShapesDataset(3, 64, 0, split).write_coco(tmp_path)
    folders = data.open_detection(str(tmp_path), with_masks=with_masks)
    for splits in (built_in, folders):
        assert splits[0].class_names == splits[1].class_names
        for split in splits:
            assert (split[0].masks is not None) == with_masks


def test_what_cannot_be_is_one_sentence(tmp_path):
    with pytest.raises(data.DatasetError, match="`data_dir` or `tfds`, not both"):
        data.open_detection(str(tmp_path), "coco/2017")
    with pytest.raises(data.DatasetError, match="without instance masks"):
        data.open_detection(tfds="coco/2017", with_masks=True)
