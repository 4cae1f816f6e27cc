"""The exact GELU against its definition."""

import math

import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.pointwise import gelu


def test_it_is_x_times_the_normal_distribution_function():
    x = np.linspace(-12, 12, 4001, dtype="float32").reshape(1, -1)
    expected = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x[0].astype("float64")])
    result = ops.convert_to_numpy(gelu(ops.convert_to_tensor(x)))[0]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype_and_the_negative_tail(dtype):
    x = ops.cast(ops.convert_to_tensor([-3.0, -2.0, 0.0, 2.0]), dtype)
    result = ops.convert_to_numpy(ops.cast(gelu(x), "float32"))
    np.testing.assert_allclose(result, [-0.00405, -0.0455, 0.0, 1.9545], rtol=0.03)
    assert gelu(x).dtype == x.dtype
