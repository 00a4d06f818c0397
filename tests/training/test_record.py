"""What a run folder records, and that it is one folder for all processes."""

import pytest

from fastling.errors import UserError
from fastling.training import record


def test_a_folder_that_another_process_does_not_see_is_refused_before_the_first_step(tmp_path, monkeypatch):
    """As where each node has a disk of its own at that path, perhaps with an earlier run's lock."""
    monkeypatch.setattr(record, "SECONDS_UNTIL_SEEN", 1)
    lock = record.lock_run_dir(tmp_path / "run")
    record.check_shared(tmp_path / "run", lock.number)
    earlier = record.lock_run_dir(tmp_path / "elsewhere")
    assert earlier.number != lock.number
    for other in ("elsewhere", "nowhere"):
        with pytest.raises(UserError, match=f"run_dir: is not on a disk that all .*{other}/lock"):
            record.check_shared(tmp_path / other, lock.number)


def test_whoever_comes_second_leaves_the_lock_as_it_is(tmp_path):
    lock = record.lock_run_dir(tmp_path)
    with pytest.raises(UserError, match="another run is at work"):
        record.lock_run_dir(tmp_path)
    record.check_shared(tmp_path, lock.number)
