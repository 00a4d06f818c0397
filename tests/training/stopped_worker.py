"""`fastling train` whose last process is sent SIGTERM, twice, after a step."""

import os
import signal

from fastling import train
from fastling.errors import leave, run_program
from fastling.training.update import Updater

SIGNALLED_AFTER = 3
"""Number of the step after which the signals are sent."""
update = Updater.update


def update_and_send(self, step, number, **options):
    measured = update(self, step, number, **options)
    if number == SIGNALLED_AFTER and self.world.rank == self.world.size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    return measured


if __name__ == "__main__":
    Updater.update = update_and_send
    leave(run_program(train.main))
