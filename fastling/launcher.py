"""Whether torchrun started this process, which then must not outlive it.

Imported before anything slow: if torchrun were killed while PyTorch is imported, this process would otherwise
take init for its launcher and wait for ever.
"""

import os
import sys
import threading
import time

_PROCESS, _PARENT = os.getpid(), os.getppid()
"""This process and its parent; in a process that is forked later, those before the fork."""


def is_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_torchrun() -> None:
    """End this process when torchrun is gone: if it is killed, its processes would train on, unnoticed."""
    if is_torchrun():
        parent = _PARENT if os.getpid() == _PROCESS else os.getppid()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    try:
        print(f"error: rank {os.environ['RANK']}: torchrun was killed", file=sys.stderr, flush=True)
    finally:  # whatever read stderr may be gone, too
        os._exit(1)
