"""Which signals stop a run, and how often they may come."""

import os
import signal

import pytest

from fastling.training.stopping import SIGNALS, told_to_stop


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    """The signals as in a process that was started by hand, whatever the tests were started by."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_handlers_are_restored(number):
    with told_to_stop() as told:
        assert told() == 0
        os.kill(os.getpid(), number)
        assert told() == number
        os.kill(os.getpid(), signal.SIGTERM)  # as Slurm and torchrun do between them
        assert told() == number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_second_ctrl_c_ends_the_run_without_a_save():
    with pytest.raises(KeyboardInterrupt), told_to_stop():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_under_torchrun_one_ctrl_c_comes_twice(monkeypatch):
    """From the terminal, and from torchrun, which sends it on."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with told_to_stop() as told:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert told() == signal.SIGINT


def test_ignored_signals_stay_ignored():
    """As the end of a connection is under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with told_to_stop() as told:
        os.kill(os.getpid(), signal.SIGHUP)
        assert told() == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
