"""What a person sees of a running training says which losses can be compared."""

import io

import pytest
from rich.console import Console

from fastling.training.progress import TrainingProgress


@pytest.mark.parametrize(
    ("loss_per", "said"),
    [
        ("token", "loss 3.000, held-out 2.500, 5"),
        ("turn", "loss 3.000 per turn, held-out 2.500 per token, 5"),
    ],
)
def test_losses_in_other_units_are_labelled(loss_per, said):
    file = io.StringIO()
    with TrainingProgress(Console(file=file, width=200), 2, 0, loss_per) as progress:
        progress.update(
            {"step": 1, "loss": 3.0, "eval_loss": 2.5, "supervised_tokens_per_s": 5.0, "mfu": None}
        )
    assert said in file.getvalue()
