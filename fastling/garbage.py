"""Keeps Python's garbage collector away from a verb's imports: 300,000 objects that live until it ends.

Otherwise it searches PyTorch and its compiler again and again: while they are imported, during training, and
once more at the end. That takes a fifth of a start's time, and over a second at the end (benchmarks/LOG.md).
"""

import gc


def wait_for_imports() -> None:
    """Search for no garbage until `pass_over_imports` is called."""
    gc.disable()


def pass_over_imports() -> None:
    """Search for garbage again, but only among objects that are made from now on."""
    gc.enable()
    gc.freeze()
