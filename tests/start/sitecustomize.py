"""Run first by every Python that a test starts; it shortens the start and the end of these programs."""

import atexit
import gc
import os
import sys

# Python's search for garbage among what PyTorch imports takes a fifth of a start and most of an end. fastling's
# own programs take care of that themselves (fastling/garbage.py), and are tested as they are.
if not any(argument.partition(".")[0] == "fastling" for argument in sys.orig_argv):
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)

# An export is compared with transformers if that is installed, which takes as long as all of a short run. So
# it is hidden here, as if it were not installed; tests of the comparison remove the variable.
if "fastling.train" in sys.orig_argv and "WITHOUT_TRANSFORMERS" in os.environ:
    sys.modules["transformers"] = None

if os.environ.get("TRITON_INTERPRET") == "1" and "-m" in sys.orig_argv:
    from tests.start.interpreter import patch_once_a_launch

    patch_once_a_launch()
