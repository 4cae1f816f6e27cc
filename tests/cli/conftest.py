"""What `predict` and `evaluate` are given; made once for all of their tests."""

import pytest

from tests.cli import trained


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return trained.write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    return trained.save_detector(tmp_path_factory.mktemp("detector"))
