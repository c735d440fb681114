"""scikit-learn's digits as class folders."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from console.errors import InputError
from data.digits import write_digits
from data.labelled import LabelledSet
from data.sources import Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("digits") / "digits"
    assert write_digits(made) == {"train": 1442, "test": 355}
    return made


def test_every_picture_is_there_once(folder):
    digits = load_digits()
    for digit in range(10):
        paths = sorted([*folder.glob(f"*/{digit}/*.png")], key=lambda path: path.name)
        written = np.stack([np.asarray(Image.open(path)) for path in paths])
        expected = digits.images[digits.target == digit]
        np.testing.assert_allclose(written * (16 / 255), expected, atol=0.04)


def test_splits_are_read_as_class_folders(folder):
    test = LabelledSet(Files(folder=str(folder)), ["test"]).open()
    assert test.classes == [str(digit) for digit in range(10)]
    assert len(test) == 355


def test_nothing_is_written_over(folder):
    with pytest.raises(InputError, match="is there already"):
        write_digits(folder)
