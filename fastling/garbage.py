"""Python's search for garbage, kept away from what a verb imports: 300,000 objects that live till it ends.

PyTorch and its compiler are looked through again and again while they are imported, in the midst of training,
and once more at the end: a fifth of a start, and over a second of an end (benchmarks/LOG.md).
"""

import gc


def wait_for_imports() -> None:
    gc.disable()


def pass_over_imports() -> None:
    """Search again, in what comes from now on."""
    gc.enable()
    gc.freeze()
