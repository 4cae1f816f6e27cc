"""Pictures are drawn while the network works: in order, and no fault is lost."""

import threading

import pytest

from keras_densepred.cli.predict_output import in_background

pytestmark = pytest.mark.backend_free


def test_calls_are_made_in_order_before_it_ends_and_elsewhere():
    done, threads = [], set()

    def draw(number):
        done.append(number)
        threads.add(threading.current_thread())

    with in_background() as soon:
        for number in range(50):
            soon(draw, number)
    assert done == list(range(50))
    assert threads.isdisjoint({threading.current_thread()})


@pytest.mark.parametrize("number", [0, 49])
def test_a_fault_is_raised(number):
    def draw(index):
        if index == number:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"), in_background() as soon:
        for index in range(50):
            soon(draw, index)
