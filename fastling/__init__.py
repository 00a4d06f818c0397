"""fastling: instruction-tunes LLaMA-family models on multi-turn, multilingual conversations.

`Llama`, `LlamaConfig` and `load_pretrained` are importable from here; everything that can be run
is one file in this folder, named after its verb (`fastling train` is `fastling/train.py`).
"""

import importlib
import os
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from fastling import errors, garbage, launcher  # noqa: F401  launcher sees here who has started this process

# PyTorch's threads on a CPU wait for one another after every operation, and spin while they do: where another
# program works, on the cores that those they wait for want. Set here, since it is read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if any(option == "-m" and name.startswith("fastling.") for option, name in pairwise(sys.orig_argv)):
    garbage.wait_for_imports()  # those of a verb come next
    errors.tell_of_the_keyboard()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastling.model.huggingface import load_pretrained
    from fastling.model.llama import Llama
    from fastling.model.llama_config import LlamaConfig

_PUBLIC = {
    "Llama": "fastling.model.llama",
    "LlamaConfig": "fastling.model.llama_config",
    "load_pretrained": "fastling.model.huggingface",
}

__all__ = ["Llama", "LlamaConfig", "load_pretrained"]


def __getattr__(name: str):
    # Loaded on first use: `fastling --help` must not wait for torch.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fastling' has no attribute {name!r}")
