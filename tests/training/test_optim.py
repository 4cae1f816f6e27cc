"""Schedules, the optimizer's rules and the averaged weights."""

import keras
import numpy as np
import pytest

from keras_densepred.training import optim, schedules


def at(schedule, step):
    return float(keras.ops.convert_to_numpy(schedule(step)))


def test_warmup_and_drops():
    schedule = schedules.WarmupSteps(1e-2, 100, drops=(200, 300))
    rates = [at(schedule, step) for step in (0, 50, 100, 199, 200, 299, 300, 1000)]
    np.testing.assert_allclose(
        rates, [1e-5, 5.005e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5
    )


def test_cosine_reaches_the_floor():
    schedule = schedules.WarmupCosine(1e-2, 10, 110, floor=1e-4)
    rates = [at(schedule, step) for step in (0, 10, 60, 110, 500)]
    np.testing.assert_allclose(rates, [1e-5, 1e-2, 5.05e-3, 1e-4, 1e-4], rtol=1e-4)


@pytest.mark.parametrize(
    "schedule", [schedules.WarmupSteps(1e-3, 5, drops=(7, 9)), schedules.WarmupCosine(1e-3, 5, 20)]
)
def test_schedules_are_serialisable(schedule):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [at(copy, step) for step in range(12)] == [at(schedule, step) for step in range(12)]


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="must increase"):
        schedules.WarmupSteps(1e-3, 5, drops=(9, 7))
    with pytest.raises(ValueError, match="must not be negative"):
        schedules.WarmupSteps(1e-3, -1)
    with pytest.raises(ValueError, match="must exceed"):
        schedules.WarmupCosine(1e-3, 20, 20)


def two_layers():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, name="stem_dense", activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def step(model, optimizer, steps=3):
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    for _ in range(steps):
        x = rng.normal(size=(8, 4)).astype("float32")
        model.train_on_batch(x, x[:, :2])
    return [np.asarray(w) for w in model.get_weights()]


def test_equals_keras_where_rules_say_the_same():
    keras.utils.set_random_seed(1)
    ours, theirs = two_layers(), two_layers()
    theirs.set_weights(ours.get_weights())
    rules = {variable.path: (1.0, 0.1) for variable in ours.trainable_variables}
    first = step(ours, optim.AdamW(0.01, weight_decay=0.0, rules=rules))
    second = step(theirs, keras.optimizers.AdamW(0.01, weight_decay=0.1, epsilon=1e-8))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="about PyTorch's kernel")
def test_pytorch_updates_each_group_at_once(monkeypatch):
    from keras_densepred.ops import adamw_torch

    calls = []
    fused = adamw_torch.adamw
    monkeypatch.setattr(
        adamw_torch,
        "adamw",
        lambda *lists, **options: calls.append(len(lists[0])) or fused(*lists, **options),
    )
    model = two_layers()
    kernels = {v.path: (1.0, 0.1) for v in model.trainable_variables if len(v.shape) > 1}
    step(model, optim.AdamW(0.01, weight_decay=0.0, rules=kernels), steps=1)
    assert calls == [2, 2]  # kernels, biases


@pytest.mark.parametrize("accumulated", [None, 2])
def test_excluded_variables_and_clipping_are_keras_own(accumulated):
    keras.utils.set_random_seed(1)
    ours, theirs = two_layers(), two_layers()
    theirs.set_weights(ours.get_weights())
    results = []
    for model, cls in ((ours, optim.AdamW), (theirs, keras.optimizers.AdamW)):
        optimizer = cls(
            0.01,
            weight_decay=0.1,
            epsilon=1e-8,
            clipnorm=0.1,
            gradient_accumulation_steps=accumulated,
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        results.append(step(model, optimizer, steps=4))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def optimizers_with_averages(model, **options):
    averages = {"use_ema": True, **options}
    yield optim.AdamW(0.05, **averages)
    yield optim.AdamW(0.05, amsgrad=True, **averages)  # which PyTorch's fused kernel does not take
    yield optim.momentum_sgd(model, 0.05, **averages)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("momentum", "kept"), [(0.99, [0, 2 / 11, 3 / 12, 4 / 13]), (0.2, None)])
def test_averages_leave_the_initial_weights_soon(number, momentum, kept):
    keras.utils.set_random_seed(3)
    model = two_layers()
    optimizer = list(optimizers_with_averages(model, ema_momentum=momentum))[number]
    mean = model.get_weights()
    for share in kept or [0, 2 / 11, 0.2, 0.2]:
        weights = step(model, optimizer, steps=1)
        mean = [share * m + (1 - share) * w for m, w in zip(mean, weights, strict=True)]
    assert optimizer.ema_momentum == momentum
    with optim.averaged_weights(model):
        for a, b in zip(model.get_weights(), mean, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_scale_and_decay_of_each_variable():
    keras.utils.set_random_seed(1)
    model = two_layers()
    before = [np.asarray(w) for w in model.get_weights()]
    rules = {"stem_dense/kernel": (0.0, 0.5), "stem_dense/bias": (0.5, 0.0)}
    after = step(model, optim.AdamW(0.01, weight_decay=0.0, rules=rules), steps=1)
    moved = [np.abs(b - a).max() for a, b in zip(before, after, strict=True)]
    assert moved[0] == 0.0  # scale 0: neither step nor decay
    # Adam's first step is the learning rate where the gradient is not small
    np.testing.assert_allclose(moved[1:], [0.005, 0.01, 0.01], rtol=1e-3)


def test_decay_alone_shrinks_by_rate_scale_and_decay():
    model = two_layers()
    optimizer = optim.AdamW(0.1, weight_decay=0.0, rules={"head/kernel": (0.5, 0.2)})
    optimizer.build(model.trainable_variables)
    before = [np.asarray(w) for w in model.get_weights()]
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    after = [np.asarray(w) for w in model.get_weights()]
    np.testing.assert_allclose(after[2], before[2] * (1 - 0.1 * 0.5 * 0.2), rtol=1e-6)
    np.testing.assert_array_equal(after[0], before[0])


def test_optimizer_is_serialisable():
    rules = {"stem_dense/kernel": (0.5, 0.05)}
    optimizer = optim.AdamW(schedules.WarmupSteps(1e-3, 5), rules=rules, use_ema=True)
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, optim.AdamW)
    assert copy.rules == rules
    assert copy.get_config() == optimizer.get_config()


def test_rules_of_another_model_are_refused():
    optimizer = optim.AdamW(1e-3, rules={"elsewhere/kernel": (0.5, 0.05)})
    with pytest.raises(ValueError, match="names a variable of the model"):
        optimizer.build(two_layers().trainable_variables)


def test_frozen_variables_need_no_rule_removed():
    model = two_layers()
    model.get_layer("stem_dense").trainable = False
    rules = {v.path: (0.5, 0.0) for v in model.weights}
    step(model, optim.AdamW(1e-3, rules=rules), steps=1)


def test_averaged_weights_come_and_go_bit_for_bit():
    keras.utils.set_random_seed(2)
    model = two_layers()
    raw = step(model, optim.AdamW(0.05, use_ema=True, ema_momentum=0.5), steps=4)
    with optim.averaged_weights(model):
        averaged = [np.asarray(w) for w in model.get_weights()]
        model.predict_on_batch(np.zeros((2, 4), "float32"))  # on JAX this donates the weights
    for variable in model.optimizer.variables:
        assert np.isfinite(keras.ops.convert_to_numpy(variable)).all()
    for a, b, c in zip(raw, averaged, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, c)
        assert np.abs(a - b).max() > 1e-4


def test_averaged_weights_do_nothing_without_averages():
    model = two_layers()
    raw = step(model, optim.AdamW(0.05), steps=1)
    with optim.averaged_weights(model):
        for a, b in zip(raw, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
