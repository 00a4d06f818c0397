"""What every Python that a test starts runs first, so that starts and ends take less of a test's time."""

import atexit
import gc
import os
import sys

# A fifth of a start, and most of an end, is Python's search for garbage among what PyTorch imports. fastling's
# own programs see to that themselves (fastling/garbage.py), and are tested as they are.
if not any(argument.partition(".")[0] == "fastling" for argument in sys.orig_argv):
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)

# As for most users: transformers, which an export is compared with where it is there, takes as long as all of
# a short run. Tests of that comparison take the variable away.
if "fastling.train" in sys.orig_argv and "WITHOUT_TRANSFORMERS" in os.environ:
    sys.modules["transformers"] = None

if os.environ.get("TRITON_INTERPRET") == "1" and "-m" in sys.orig_argv:
    from tests.start.interpreter import patch_once_a_launch

    patch_once_a_launch()
