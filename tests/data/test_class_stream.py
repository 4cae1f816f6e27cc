"""Batches for classifiers: contents, soft targets, mixing, and the same for any process count."""

import json

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.augment.mixing import soft_targets
from tests.data import pictures
from tests.data.class_pictures import Labelled, evaluate, indices_in, train, write_split
from tests.data.pictures import NORMAL, assert_same, run_script, take

pytestmark = pytest.mark.backend_free


def test_a_training_batch():
    with train(Labelled(6), batch_size=6, label_smoothing=0.3) as stream:
        batch = next(stream)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "images": ((6, 32, 32, 3), "uint8"),
        "targets": ((6, 3), "float32"),
    }
    assert sorted(indices_in(batch)) == list(range(6)), "an epoch has every image once"
    for target, index in zip(batch["targets"], indices_in(batch), strict=True):
        expected = np.full(3, 0.1)
        expected[index % 3] = 0.8
        np.testing.assert_allclose(target, expected, rtol=1e-6)


def test_normalised_images_are_those_of_bytes():
    recipe = data.imagenet_augmentation(32)
    dataset = data.ShapesClassification(8, 48)
    with (
        train(dataset, augment=recipe) as plain,
        train(dataset, augment=recipe, **NORMAL) as normalised,
    ):
        ours, theirs = next(normalised)["images"], next(plain)["images"]
    assert ours.dtype == np.float32
    expected = (theirs - np.float32(NORMAL["mean"])) / np.float32(NORMAL["std"])
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_batches_depend_on_seed_and_number_only(tmp_path):
    dataset = data.ImageFolder(write_split(tmp_path, count=5))
    settings = {"augment": None, "mixing": data.Mixing(), "label_smoothing": 0.1}
    with train(dataset, **settings) as stream:
        straight = take(stream, 6)
        assert_same([stream.batch(4)], straight[4:5])
    with train(dataset, **settings) as stream:
        take(stream, 2)
        saved = json.loads(json.dumps(stream.get_state()))
        take(stream, 2)
        stream.set_state(saved)
        assert_same(take(stream, 4), straight[2:])
    with train(dataset, seed=1, **settings) as stream:
        assert not np.array_equal(next(stream)["images"], straight[0]["images"])
        with pytest.raises(ValueError, match="seed = 0"):
            stream.set_state(saved)


def joined(shards):
    return [
        {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        for batches in zip(*shards, strict=True)
    ]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_training_batches_of_one(count):
    dataset = data.ShapesClassification(11, 40)
    settings = {
        "batch_size": 8,
        "augment": data.imagenet_augmentation(32),
        "mixing": data.Mixing(),
        "label_smoothing": 0.1,
    }
    with train(dataset, **settings) as alone:
        expected = take(alone, 4)
    shards = []
    for index in range(count):
        with train(dataset, shard=(index, count), **settings) as stream:
            take(stream, 1)
            state = stream.get_state()
        # A run may go on with another number of processes.
        with train(dataset, shard=(index, count), **settings) as stream:
            stream.set_state(state)
            shards.append([stream.batch(0), *take(stream, 3)])
    assert all(len(batch["images"]) == 8 // count for batch in shards[0])
    assert_same(joined(shards), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_evaluation_batches_of_one(count):
    dataset = Labelled(13, bad={6})
    expected = list(evaluate(dataset, 8, on_bad_image="skip"))
    shards = [
        list(evaluate(dataset, 8, on_bad_image="skip", shard=(index, count)))
        for index in range(count)
    ]
    assert_same(joined(shards), expected)
    seen = [indices_in(b)[row] for s in shards for b in s for row in np.flatnonzero(b["valid"])]
    assert sorted(seen) == [index for index in range(13) if index != 6]


def test_processes_share_the_batches_of_detectors():
    dataset = data.ShapesDataset(11, 48)
    recipe = data.coco_augmentation(48)
    with pictures.train(dataset, 8, 48, augment=recipe) as alone:
        expected = take(alone, 2)
    shards = []
    for index in range(4):
        with pictures.train(dataset, 8, 48, augment=recipe, shard=(index, 4)) as stream:
            shards.append(take(stream, 2))
    assert_same(joined(shards), expected)
    passes = [
        list(pictures.evaluate(dataset, 8, image_size=48, shard=(index, 4))) for index in range(4)
    ]
    assert {len(batches) for batches in passes} == {2}
    seen = [b["image_ids"][b["valid"]] for batches in passes for b in batches]
    assert sorted(np.concatenate(seen)) == list(dataset.image_ids)


def test_evaluation_has_every_image_once_and_fills_the_last_batch():
    batches = evaluate(Labelled(10), **NORMAL)
    assert len(batches) == 3
    for _ in range(2):
        found = list(batches)
        assert [batch["valid"].sum() for batch in found] == [4, 4, 2]
        assert np.concatenate([b["labels"] for b in found])[:10].tolist() == [
            index % 3 for index in range(10)
        ]
        assert np.concatenate([b["indices"] for b in found])[:10].tolist() == list(range(10))
        assert found[0]["labels"].dtype == np.int32
        assert (found[2]["images"][2:] == 0).all()
        expected = (7 - np.array(NORMAL["mean"])) / NORMAL["std"]
        np.testing.assert_allclose(found[1]["images"][3, 5, 7], expected, rtol=1e-6)


def test_a_bad_image():
    dataset = Labelled(8, bad={5, 6})
    with train(dataset, 8) as stream, pytest.raises(data.ImageError, match=r"^picture_\d\.png"):
        next(stream)
    with train(dataset, 8, on_bad_image="skip") as stream:
        assert sorted(indices_in(next(stream))) == [0, 1, 2, 3, 4, 7, 7, 7]
        assert stream.skipped_images == {
            "picture_5.png is broken.": 1,
            "picture_6.png is broken.": 2,
        }
    with pytest.raises(data.ImageError, match=r"^picture_5\.png is broken"):
        list(evaluate(dataset, 8))
    batches = evaluate(dataset, 8, on_bad_image="skip")
    (batch,) = batches
    assert np.flatnonzero(~batch["valid"]).tolist() == [5, 6]
    assert len(batches.skipped_images) == 2


def test_an_image_that_breaks_only_when_it_is_decoded_is_skipped(tmp_path):
    write_split(tmp_path)
    content = (tmp_path / "cat" / "0.jpg").read_bytes()
    (tmp_path / "cat" / "0.jpg").write_bytes(content[:-40])
    dataset = data.ImageFolder(tmp_path)
    with train(dataset, 6, augment=None, on_bad_image="skip") as stream:
        assert next(stream)["images"].shape == (6, 32, 32, 3)
        assert any("0.jpg is damaged" in message for message in stream.skipped_images)


def mixed(mixing, count=512, height=16, number=0):
    """Images that are all their row's number over `count`, and one class a row of a pair."""
    rows = np.arange(count, dtype=np.float32) / count
    images = np.ones((count, height, height, 3), np.float32) * rows[:, None, None, None]
    targets = soft_targets(np.arange(count) % 2, 4, 0.1)
    mixing.apply(images, targets, seed=3, number=number, first_row=0)
    return images, targets, rows


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_mixed_as_the_images_are(alphas):
    for number in range(10):
        images, targets, rows = mixed(data.Mixing(*alphas), 8, number=number)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
        for row in range(8):
            own, other = rows[row], rows[row ^ 1]
            share = (images[row].mean() - other) / (own - other)
            first, second = soft_targets(np.array([row % 2, 1 - row % 2]), 4, 0.1)
            expected = share * first + (1 - share) * second
            np.testing.assert_allclose(targets[row], expected, atol=2e-5)


def test_shares_have_the_papers_distributions():
    """Rows of one draw share it; over draws, Beta(0.8, 0.8) has a variance of 1 / 10.4."""
    for mixing, variance in [(data.Mixing(0.8, 0.0), 1 / 10.4), (data.Mixing(0.0, 1.0), None)]:
        shares = []
        for number in range(60 if variance else 20):
            _, targets, _ = mixed(mixing, 512, 4 if variance else 32, number)
            share = (targets[0::2, 0] - 0.025) / 0.9
            assert all(np.ptp(share[start : start + 64]) < 1e-6 for start in range(0, 256, 64))
            shares += share[::64].tolist()
        assert len(set(shares)) > (200 if variance else 40)
        if variance:
            assert abs(np.mean(shares) - 0.5) < 0.07
            assert abs(np.var(shares) - variance) < 0.025


def test_mixup_and_cutmix_are_switched():
    is_cutmix = []
    for number in range(40):
        images, _, rows = mixed(data.Mixing(), 2, number=number)
        is_cutmix.append(np.isin(images, rows[:2]).all())
    assert 8 < sum(is_cutmix) < 32
    images, targets, rows = mixed(data.Mixing(probability=0.0), 2)
    assert (images == rows[:2, None, None, None]).all() and (targets.max(1) > 0.9).all()


def test_bytes_are_mixed_as_floats_are():
    dataset = data.ShapesClassification(8, 32)
    with (
        train(dataset, 8, mixing=data.Mixing(0.8, 0.0)) as plain,
        train(dataset, 8, mixing=data.Mixing(0.8, 0.0), mean=(0,) * 3, std=(1,) * 3) as floats,
    ):
        ours, theirs = next(plain), next(floats)
    assert np.abs(ours["images"] - theirs["images"]).max() <= 0.5001
    np.testing.assert_array_equal(ours["targets"], theirs["targets"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": Labelled(0)}, "no images"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 6, "shard": (0, 4)}, "6 does not divide among 4 processes"),
        ({"shard": (2, 2)}, "`shard`"),
        ({"batch_size": 6, "shard": (0, 2), "mixing": data.Mixing()}, "use a multiple of 4"),
        ({"seed": -1}, "`seed`"),
        ({"label_smoothing": 1.5}, "`label_smoothing`"),
        ({"mean": (0.0,) * 3}, "both `mean` and `std`"),
        ({"image_size": (0, 9)}, "0x9"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(**{"dataset": Labelled(6), **arguments})


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="crop_ratio"):
        evaluate(Labelled(3), crop_ratio=0.0)
    with pytest.raises(ValueError, match="None for neither"):
        data.Mixing(0.0, 0.0)
    with pytest.raises(ValueError, match="switch_probability"):
        data.Mixing(switch_probability=2.0)
    with (
        train(Labelled(4, size=(20, 40))) as stream,
        pytest.raises(ValueError, match=r"picture_\d\.png.*20x40.*32x32.*RandomResizedCrop"),
    ):
        next(stream)


SCRIPT = """
    import numpy as np
    from keras_densepred import data

    def stream(workers, shard):
        return data.train_class_batches(
            data.ShapesClassification(8, 40), batch_size=8, image_size=32, seed=2,
            mean=None, std=None, mixing=data.Mixing(), workers=workers, shard=shard,
        )

    if __name__ == "__main__":
        with stream(0, (0, 1)) as alone, stream(1, (1, 2)) as workers:
            for _ in range(3):
                expected, ours = next(alone), next(workers)
                for key in ours:
                    np.testing.assert_array_equal(ours[key], expected[key][4:])
        print("done")
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(tmp_path):
    assert run_script(tmp_path, SCRIPT) == ["done"]
