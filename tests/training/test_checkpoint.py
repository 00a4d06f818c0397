"""P11, P13: a checkpoint is whole or absent; damage is found and named; the one before is used."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import filesystem

from fastling.config import Checkpoint
from fastling.errors import RunError, UserError
from fastling.json_files import sealed_json
from fastling.training import checkpoint


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def model_and_optimizer(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return model, optimizer


def make_step(model, optimizer) -> None:
    model(torch.arange(10.0).view(2, 5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder, step: int, model, optimizer, keep_last: int = 3):
    tensors = checkpoint.training_tensors(model, optimizer)
    return checkpoint.save(folder, step, tensors, {"identity": {}}, keep_last=keep_last)


def test_a_resumed_optimizer_continues_bit_for_bit(process_group, tmp_path):
    model, optimizer = model_and_optimizer()
    for _ in range(3):
        make_step(model, optimizer)
    save(tmp_path, 3, model, optimizer)
    make_step(model, optimizer)

    other, other_optimizer = model_and_optimizer(seed=1)
    assert checkpoint.newest_step(tmp_path) == 3
    folder = checkpoint.open_checkpoint(tmp_path, 3).folder
    checkpoint.load(folder, checkpoint.training_tensors(other, other_optimizer))
    checkpoint.set_step(other_optimizer, 3)
    make_step(other, other_optimizer)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_holds_no_pickle(process_group, tmp_path):
    folder = save(tmp_path, 1, *model_and_optimizer())
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".safetensors", ".json"}


def test_keeps_only_the_newest(process_group, tmp_path):
    model, optimizer = model_and_optimizer()
    for step in range(1, 6):
        save(tmp_path, step, model, optimizer, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_half_deleted_by_a_killed_run_does_not_count(process_group, tmp_path, monkeypatch):
    def killed_in_the_midst(folder, **_):
        if folder.is_dir():
            next(folder.iterdir()).unlink()
            raise KeyboardInterrupt

    model, optimizer = model_and_optimizer()
    save(tmp_path, 1, model, optimizer)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed_in_the_midst)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, model, optimizer, keep_last=1)
    assert [path.name for path in tmp_path.glob("step-????????")] == ["step-00000002"]
    monkeypatch.undo()
    checkpoint.clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(process_group, tmp_path, monkeypatch):
    """Over NFS a folder stays as long as a file in it is read."""

    def busy(*_, **__):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    model, optimizer = model_and_optimizer()
    save(tmp_path, 1, model, optimizer)
    monkeypatch.setattr(os, "rmdir", busy)
    save(tmp_path, 2, model, optimizer, keep_last=1)
    assert checkpoint.newest_step(tmp_path, lambda text: None) == 2
    monkeypatch.undo()
    checkpoint.clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_damaged_later_one_does_not_push_out_the_good_ones(process_group, tmp_path):
    """After falling back from step 3 to step 1, the one written next is kept."""
    model, optimizer = model_and_optimizer()
    for step in (1, 3):
        save(tmp_path, step, model, optimizer, keep_last=2)
    (tmp_path / "step-00000003/state.json").unlink()
    save(tmp_path, 2, model, optimizer, keep_last=1)
    assert checkpoint.newest_step(tmp_path, lambda text: None) == 2


def test_a_replica_written_by_another_rank_is_not_missing(process_group, tmp_path):
    folder = save(tmp_path, 1, *model_and_optimizer())
    digests = json.loads((folder / "digests-0000.json").read_text())
    for tensor in digests["tensors"].values():
        tensor[-1] = None  # in none of its own files
    del digests["sha256"]
    (folder / "digests-0001.json").write_text(sealed_json(digests))
    (folder / "state.json").write_text(sealed_json({"identity": {}, "step": 1, "ranks": 2}))
    assert checkpoint.damage(folder) is None
    digests["tensors"]["model.0.weight"][0] = "0" * 64
    (folder / "digests-0001.json").write_text(sealed_json(digests))
    assert checkpoint.damage(folder) == "rank 1: model.0.weight is missing"


def damages():
    """(name, function of a checkpoint's folder) of things that happen to files."""

    def flip(where: float):
        def damage(folder):
            path = next(folder.glob("*.safetensors"))
            data = bytearray(path.read_bytes())
            start = 8 + int.from_bytes(data[:8], "little")  # past the header
            data[start + int(where * (len(data) - start - 1))] ^= 1
            path.write_bytes(data)

        return damage

    def cut(folder):
        path = next(folder.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-3])

    def remove(name):
        return lambda folder: next(folder.glob(name)).unlink()

    def stale(folder):  # a shard of an earlier step
        earlier = folder.with_name("step-00000001")
        shutil.copyfile(next(earlier.glob("*.safetensors")), next(folder.glob("*.safetensors")))

    def flip_a_name(folder):  # in the header, of a tensor
        path = next(folder.glob("*.safetensors"))
        path.write_bytes(path.read_bytes().replace(b"model.0.weight", b"model.0.weighu"))

    yield from ((f"bit flipped at {where}", flip(where)) for where in (0.0, 0.3, 0.7, 1.0))
    yield "bit flipped in a name", flip_a_name
    yield "cut short", cut

    def stale_with_its_digests(folder):  # as when one node's files come from another backup
        stale(folder)
        earlier = folder.with_name("step-00000001")
        shutil.copyfile(earlier / "digests-0000.json", folder / "digests-0000.json")

    def renamed(folder):  # what is left when two ranks' shards are swapped
        path = next(folder.glob("*.safetensors"))
        path.rename(path.with_name("shard-00002-model-00001-of-00001.safetensors"))

    yield "stale shard", stale
    yield "stale shard and digests", stale_with_its_digests
    yield "shard under another name", renamed
    yield from ((f"no {name}", remove(name)) for name in ("*.safetensors", "digests-*.json", "state.json"))


DAMAGES = list(damages())


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[name for name, _ in DAMAGES])
def test_damage_is_found_and_the_previous_checkpoint_is_used(process_group, tmp_path, name, damage):
    model, optimizer = model_and_optimizer()
    for step in (1, 2):
        make_step(model, optimizer)
        save(tmp_path, step, model, optimizer)
    damage(tmp_path / "step-00000002")
    said = []
    assert checkpoint.newest_step(tmp_path, said.append) == 1
    assert len(said) == 1 and "step-00000002: damaged" in said[0]
    assert any(f": {path.name}: " in said[0] for path in tmp_path.glob("step-*/*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", {"ranks": "1"}),
        ("digests-0000.json", {"tensors": ["x"]}),
        ("digests-0000.json", {"tensors": {"x": None}}),
        ("digests-0000.json", {"tensors": {"x": ["", "", [1], [[]], []]}}),
    ],
)
def test_a_sealed_file_of_another_form_is_damage_not_a_traceback(process_group, tmp_path, name, content):
    model, optimizer = model_and_optimizer()
    for step in (1, 2):
        save(tmp_path, step, model, optimizer)
    (tmp_path / "step-00000002" / name).write_text(sealed_json({"step": 2, **content}))
    said = []
    assert checkpoint.newest_step(tmp_path, said.append) == 1
    assert len(said) == 1 and "step-00000002: damaged" in said[0]


def flipped(path, positions):
    """Write the file with a bit flipped in each of these bytes in turn; whole again at the end."""
    whole = path.read_bytes()
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 7)
        path.write_bytes(damaged)
        yield position
    path.write_bytes(whole)


@pytest.mark.slow
def test_every_single_byte_of_the_tensors_is_guarded(process_group, tmp_path):
    folder = save(tmp_path, 1, *model_and_optimizer())
    path = next(folder.glob("*.safetensors"))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in flipped(path, range(start, len(whole))):
        assert checkpoint.damage(folder) is not None, position
    assert checkpoint.damage(folder) is None


@pytest.mark.slow
def test_every_single_byte_of_the_header_is_guarded_or_does_not_matter(process_group, tmp_path):
    """It says where each rank's rows belong: silently elsewhere, they would be weights of another model."""
    model, optimizer = model_and_optimizer()
    folder = save(tmp_path, 1, model, optimizer)
    path = next(folder.glob("*.safetensors"))
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    unnoticed = 0
    for position in flipped(path, range(header_bytes)):
        if checkpoint.damage(folder) is None:  # the name or version of the format
            unnoticed += 1
            other, other_optimizer = model_and_optimizer(seed=1)
            checkpoint.load(folder, checkpoint.training_tensors(other, other_optimizer))
            assert all(map(torch.equal, other.parameters(), model.parameters())), position
    assert unnoticed < header_bytes / 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state.json", "digests-0000.json"])
def test_every_single_byte_of_the_metadata_is_guarded(process_group, tmp_path, name):
    folder = save(tmp_path, 4, *model_and_optimizer())
    path = folder / name
    for position in flipped(path, range(path.stat().st_size)):
        assert (checkpoint.damage(folder) or "").startswith(f"{name}: "), position


def test_a_checkpoint_renamed_to_another_step_does_not_count(process_group, tmp_path):
    save(tmp_path, 4, *model_and_optimizer()).rename(tmp_path / "step-00000005")
    assert checkpoint.damage(tmp_path / "step-00000005") == "state.json: is of step 4"


def test_remains_of_killed_saves_are_removed(process_group, tmp_path):
    folder = save(tmp_path, 1, *model_and_optimizer())
    for name in ("step-00000002.tmp", ".step-00000003.replaced"):  # the latter was damaged, and is made anew
        shutil.copytree(folder, tmp_path / name)
    checkpoint.clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("put", [Path.touch, lambda path: path.symlink_to("away")], ids=["file", "link"])
def test_a_file_or_link_in_the_place_of_a_folder_stops_no_run(process_group, tmp_path, put):
    for name in ("step-00000002", "step-00000003", "step-00000004.tmp"):
        put(tmp_path / name)
    put(save(tmp_path, 1, *model_and_optimizer()) / "more")
    checkpoint.clear_leftovers(tmp_path)
    assert checkpoint.newest_step(tmp_path) == 1
    checkpoint.check_room(tmp_path, 1000, Checkpoint(), 2, other_bytes=0)
    save(tmp_path, 3, *model_and_optimizer(), keep_last=1)
    checkpoint.clear_leftovers(tmp_path)  # at the next start
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_too_small_a_disk_is_reported_before_the_first_step(process_group, tmp_path, monkeypatch):
    disk = SimpleNamespace(free=35_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: disk)
    each = Checkpoint(every_steps=1)
    checkpoint.check_room(tmp_path, 1000, each, 2, other_bytes=11_000)  # 24,000 and 11,000
    with pytest.raises(UserError, match="2 checkpoints and the export"):
        checkpoint.check_room(tmp_path, 1000, each, 2, other_bytes=11_001)
    with pytest.raises(UserError, match="3 checkpoints and the export, less what is there, need 0.000"):
        checkpoint.check_room(tmp_path, 1000, each, 3, other_bytes=0)
    folder = save(tmp_path, 1, *model_and_optimizer())
    (folder / "padding").write_bytes(bytes(12_000))  # room that is already taken
    checkpoint.check_room(tmp_path, 1000, each, 2, other_bytes=10_000)
    disk.free = 1_000
    with pytest.raises(UserError, match="2 checkpoints and the export"):  # beside that one, which stays
        checkpoint.check_room(tmp_path, 1000, each, 1, other_bytes=0)
    checkpoint.check_room(tmp_path, 1000, each, 0, other_bytes=0)


@pytest.mark.parametrize(
    ("keep_last", "steps", "already", "most"),
    [(3, 1, 0, 1), (3, 9, 0, 4), (3, 1, 2, 3), (3, 9, 2, 4), (3, 9, 3, 4), (1, 9, 3, 4), (3, 0, 2, 2)],
)
def test_a_new_checkpoint_is_written_before_an_old_one_goes(keep_last, steps, already, most):
    config = Checkpoint(every_steps=1, keep_last=keep_last)
    assert checkpoint.copies_at_once(config, steps, already) == most


def test_the_last_steps_are_saved_however_few():
    assert checkpoint.copies_at_once(Checkpoint(every_steps=4, keep_last=9), 9) == 3


def test_having_no_undamaged_checkpoint_is_reported(process_group, tmp_path):
    folder = save(tmp_path, 1, *model_and_optimizer())
    (folder / "state.json").unlink()
    with pytest.raises(RunError, match="all checkpoints are damaged"):
        checkpoint.newest_step(tmp_path, lambda text: None)


@pytest.mark.parametrize("moment", ["damage", "load"])
def test_a_checkpoint_deleted_while_read_gives_way_to_a_newer_one(
    process_group, tmp_path, monkeypatch, moment
):
    """An export of a run that goes on: it keeps only the newest."""
    model, optimizer = model_and_optimizer()
    save(tmp_path, 1, model, optimizer, keep_last=1)
    read = getattr(checkpoint, moment)

    def deleted_meanwhile(*arguments):
        monkeypatch.setattr(checkpoint, moment, read)
        make_step(model, optimizer)
        save(tmp_path, 2, model, optimizer, keep_last=1)
        return read(*arguments)

    monkeypatch.setattr(checkpoint, moment, deleted_meanwhile)
    said, other = [], model_and_optimizer(seed=1)[0]
    tensors = {f"model.{name}": parameter.detach() for name, parameter in other.named_parameters()}
    assert checkpoint.load_newest(tmp_path, tensors, said.append) == 2 and not said
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_verified_checkpoint_that_then_fails_is_explained(process_group, tmp_path, monkeypatch):
    """As on a disk of another machine, or one that fails just then."""
    model, optimizer = model_and_optimizer()
    folder = save(tmp_path, 1, model, optimizer)
    next(folder.glob("*.safetensors")).write_bytes(b"\0" * 64)
    with pytest.raises(RunError, match="step-00000001: the checkpoint could not be read: "):
        checkpoint.load(folder, checkpoint.training_tensors(model, optimizer))
    asked = iter([1])  # once
    monkeypatch.setattr(checkpoint, "newest_step", lambda *_: next(asked))
    with pytest.raises(RunError, match="step-00000001: the checkpoint could not be read: "):
        checkpoint.load_newest(tmp_path, checkpoint.training_tensors(model, optimizer))
    (folder / "state.json").unlink()
    with pytest.raises(RunError, match="step-00000001: passed its check, but cannot be read now: state.json"):
        checkpoint.open_checkpoint(tmp_path, 1)


def test_an_unfinished_checkpoint_is_ignored(process_group, tmp_path):
    model, optimizer = model_and_optimizer()
    folder = save(tmp_path, 1, model, optimizer)
    folder.rename(tmp_path / "step-00000002.tmp")
    assert checkpoint.newest_step(tmp_path) == 0
    save(tmp_path, 2, model, optimizer)
    assert checkpoint.newest_step(tmp_path) == 2


def test_a_full_disk_is_explained_and_the_last_checkpoint_stays(process_group, tmp_path, monkeypatch):
    model, optimizer = model_and_optimizer()
    save(tmp_path, 1, model, optimizer)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(RunError, match="could not be written: OSError.*No space left"):
        save(tmp_path, 2, model, optimizer)
    assert checkpoint.newest_step(tmp_path) == 1
    assert not list(tmp_path.glob("*.tmp"))  # it would keep the disk full


def test_copies_off_a_gpu_are_not_pinned(process_group, tmp_path, monkeypatch):
    """Such memory is never given back, and a block of it is up to twice its tensor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(filesystem, "_OverlappingCpuLoader", None)  # which pins what it copies
    assert checkpoint.damage(save(tmp_path, 1, *model_and_optimizer())) is None


def test_state_json_holds_step_and_ranks(process_group, tmp_path):
    folder = save(tmp_path, 7, *model_and_optimizer())
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 7 and state["ranks"] == 1
