"""Files and folders that are whole or absent, whenever the program is killed."""

import os
from pathlib import Path

import pytest

from fastling import files
from fastling.config import Config
from fastling.errors import UserError, run_command
from fastling.json_files import drop_later_steps
from fastling.locks import alone
from fastling.training.metrics_log import MetricsLog, plot_loss
from fastling.training.record import lock_run_dir


class Killed(BaseException):
    """Stands for a kill: nothing that handles exceptions comes to run."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_folder_that_is_replaced_is_whole_under_some_name_whenever_it_is_killed(
    tmp_path, monkeypatch, renames
):
    aside, final = tmp_path / "out.tmp", tmp_path / "out"
    for folder, text in ((final, "old"), (aside, "new")):
        folder.mkdir()
        (folder / "file").write_text(text)
    rename, done = Path.rename, []

    def killed_after(path, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_after)
        try:
            files.publish(aside, final)
        except Killed:
            pass
    found = {path.read_text() for path in tmp_path.glob("**/file")}
    assert found == ({"new"} if renames == 2 else {"old", "new"})
    if renames < 2:
        files.publish(aside, final)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (final / "file").read_text() == "new"


def test_two_processes_that_write_one_file_do_not_write_into_each_other_s(tmp_path, monkeypatch):
    """One is in the middle of it while the other does all of it."""
    path, flush = tmp_path / "x.json", os.fsync

    def in_the_middle(descriptor):
        flush(descriptor)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            other.setattr(os, "fsync", flush)
            files.write_text(path, "other")

    monkeypatch.setattr(os, "fsync", in_the_middle)
    files.write_text(path, "mine")
    assert path.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_finds_no_room_is_named_and_the_old_one_stays(tmp_path, quota, capsys):
    path = tmp_path / "x.json"
    files.write_text(path, "old")
    assert run_command(lambda arguments: files.write_text(path, "x" * 5000), []) == 1
    assert capsys.readouterr().err == f"error: {path}: File too large\n"
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"x.json": "old"}


def test_a_file_that_is_interrupted_by_the_keyboard_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_text(path, "old")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(path, "new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"x.json": "old"}


def test_metrics_that_find_no_room_name_their_file(tmp_path, quota):
    with pytest.raises(OSError, match="File too large: '.*metrics.jsonl'"):
        with MetricsLog(tmp_path, Config(), first_step=0) as log:  # what it still holds finds no room either
            log.write({"step": 1, "words": "x" * 5000})


def test_no_file_outside_a_folder_is_written_through_its_links(tmp_path):
    """As in the folder of a run, or of token stores, that somebody else has made."""
    folder, treasure, nowhere = tmp_path / "run", tmp_path / "treasure", tmp_path / "nowhere"
    folder.mkdir()
    treasure.write_text("mine")
    for name in ("lock", "loss.png.tmp", f"config.yaml.{os.getpid()}.tmp", "store.lock"):
        (folder / name).symlink_to(treasure)
    (folder / "metrics.jsonl").symlink_to(nowhere)

    files.write_text(folder / "config.yaml", "seed: 1")
    plot_loss(folder, "token")
    drop_later_steps(folder / "metrics.jsonl", 0)
    with pytest.raises(UserError, match="run_dir: cannot be written: .*lock: .*symbolic link"):
        lock_run_dir(folder)
    with pytest.raises(OSError, match="symbolic link"), alone(folder / "store.lock"):
        pass

    assert treasure.read_text() == "mine"
    assert not (folder / "metrics.jsonl").is_symlink() and not nowhere.exists()


def test_a_pipe_in_the_place_of_a_lock_keeps_no_process_waiting(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError, match="run_dir: cannot be written: .*/lock: No such device"):
        lock_run_dir(tmp_path)
    with pytest.raises(OSError, match="No such device"), alone(tmp_path / "lock"):
        pass
