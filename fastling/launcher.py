"""torchrun, if it has started this process, which then must not outlive it.

Imported before anything that takes long: who kills torchrun while PyTorch is imported would otherwise leave a
process that takes init for its launcher, and waits for ever.
"""

import os
import sys
import threading
import time

_PROCESS, _PARENT = os.getpid(), os.getppid()
"""This process and the one that has started it; of a process that is forked later, those before the fork."""


def is_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_torchrun() -> None:
    """End this process when torchrun is gone: if it is killed, its processes would train on unnoticed."""
    if is_torchrun():
        parent = _PARENT if os.getpid() == _PROCESS else os.getppid()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    try:
        print(f"error: rank {os.environ['RANK']}: torchrun was killed", file=sys.stderr, flush=True)
    finally:  # who read stderr may be gone, too
        os._exit(1)
