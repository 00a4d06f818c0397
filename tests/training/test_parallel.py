"""The processes of a run: what is said where one cannot go on."""

import pytest
import torch

from fastling.config import Config
from fastling.errors import RunError
from fastling.training.parallel import open_world


def test_a_gpu_that_is_full_is_told_in_words_with_what_helps():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB"
    with pytest.raises(
        RunError, match="cpu: CUDA out of memory. Tried to allocate 2.00 GiB\n  Lower train.micro"
    ):
        with open_world(Config()):
            raise torch.OutOfMemoryError(said)
