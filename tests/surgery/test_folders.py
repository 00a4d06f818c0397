"""Where results go: whole or absent, nothing overwritten, whatever happens on the way."""

import shutil

import pytest
import torch
from surgery.models import change, make_model, tensors_of

from fastling import delta, files, merge
from fastling.errors import RunError, UserError, run_command
from fastling.model.digests import digest
from fastling.surgery import folders
from fastling.surgery.delta_weights import apply_delta, make_delta
from fastling.surgery.folders import Weights, joint_digest, new_folder, write_weights
from fastling.surgery.merging import merge_models

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all


def test_an_empty_folder_is_filled_and_any_other_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", 0) as aside:
        (aside / "a").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "out", 0):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "file", 0):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "link", 0):
        pass


def test_only_remains_of_killed_runs_are_deleted(tmp_path):
    beside = tmp_path / "out.tmp"
    beside.mkdir()
    (beside / "out").mkdir()
    (beside / "out/mine").write_text("mine")
    with pytest.raises(UserError, match="is taken"), new_folder(tmp_path / "out", 0):
        pass
    assert (beside / "out/mine").read_text() == "mine"
    (beside / ".unfinished").touch()
    with new_folder(tmp_path / "out", 0) as aside:
        assert not (aside / "mine").exists()
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "new.tmp").write_text("mine")
    with pytest.raises(UserError, match="is taken"), new_folder(tmp_path / "new", 0):
        pass
    assert (tmp_path / "new.tmp").read_text() == "mine"


def test_two_processes_do_not_write_one_folder(tmp_path):
    """Else both would fail, or one give its name to what the other wrote."""
    with new_folder(tmp_path / "out", 0) as aside:
        (aside / "a").write_text("1")
        with pytest.raises(UserError, match="is being written by another process"):
            with new_folder(tmp_path / "out", 0):
                pytest.fail("went on")
    assert (tmp_path / "out/a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_run_killed_while_renaming_starts_over(tmp_path, monkeypatch, place):
    """Flushing alone takes minutes of a large model."""
    publish = files.publish

    def killed(aside, final):
        if place == "after":
            publish(aside, final)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nothing comes to run
        with pytest.raises(SystemExit), new_folder(tmp_path / "out", 0) as aside:
            (aside / "a").write_text("1")
    if place == "after":
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
        (tmp_path / "out").rename(tmp_path / "moved")
    with new_folder(tmp_path / "out", 0) as aside:
        (aside / "a").write_text("2")
    assert (tmp_path / "out/a").read_text() == "2" and not (tmp_path / "out.tmp").exists()


def test_files_that_appeared_meanwhile_are_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "out", 0):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("mine")
    assert (tmp_path / "out/mine").read_text() == "mine" and not (tmp_path / "out.tmp").exists()


def test_too_small_a_disk_is_reported_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="GiB free, the weights need"), new_folder(tmp_path / "out", 2**60):
        pytest.fail("went on")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "file/out", 0):
        pass


def test_a_disk_that_returns_other_bytes_is_noticed(tmp_path, monkeypatch):
    original = folders.save_weights

    def damaging(named, folder, **options):
        original(((name, tensor + 1) for name, tensor in named), folder, **options)

    monkeypatch.setattr(folders, "save_weights", damaging)
    with pytest.raises(RunError, match="x is not what was written"):
        write_weights(iter([("x", torch.ones(3))]), tmp_path, torch.float32)


def test_disk_space_is_checked_for_the_size_of_the_weights(tmp_path, monkeypatch):
    one, other = (make_model(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b")))
    asked = []
    monkeypatch.setattr(files, "check_disk", lambda folder, num_bytes, *_: asked.append(num_bytes))
    merge_models([one, other], [1, 1], tmp_path / "merged", pytest.fail)
    make_delta(one, other, tmp_path / "delta", None)
    apply_delta(one, tmp_path / "delta", tmp_path / "applied", pytest.fail)
    assert asked == 3 * [sum(tensor.nbytes for tensor in tensors_of(one).values())]


@pytest.mark.parametrize("verb", [delta, merge], ids=["delta", "merge"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, verb, capsys, request):
    """A limit on the size of files stands for the full disk: the write fails in the middle."""
    for seed, name in enumerate(("a", "b")):
        make_model(tmp_path / name, seed=seed)
    arguments = {
        delta: ["make", "--base", tmp_path / "a", "--target", tmp_path / "b"],
        merge: ["--models", tmp_path / "a", tmp_path / "b"],
    }[verb]
    request.getfixturevalue("quota")
    assert run_command(verb.main, list(map(str, [*arguments, "--out", tmp_path / "out"]))) == 1
    said = capsys.readouterr().err
    assert "could not be written" in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_digests_know_name_dtype_shape_and_bytes_and_no_order():
    one = torch.arange(6, dtype=torch.float16).view(2, 3)
    others = [
        digest("y", one),
        digest("x", one.view(3, 2)),
        digest("x", one.view(torch.int16)),
        digest("x", one + 1),
        digest("x", one.bfloat16()),
    ]
    assert len({digest("x", one), *others}) == 6
    assert digest("x", one) == digest("x", one.t().contiguous().t())
    assert (
        joint_digest({"a": "1", "b": "2"}) == joint_digest({"b": "2", "a": "1"}) != joint_digest({"a": "1"})
    )


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda held: held.pop("model.norm.weight"), r"missing: model\.norm\.weight \(16,\)"),
        (lambda held: held.update({"model.more.weight": torch.ones(2)}), r"unexpected: model\.more\.weight"),
        (lambda held: held.update({"model.norm.weight": torch.ones(8)}), r"misshapen: model\.norm\.weight"),
        (lambda held: held.update({"lm_head.weight": torch.ones(2000, 16)}), "is not the embedding"),
    ],
)
def test_weights_that_do_not_match_the_config_are_refused(tmp_path, edit, said):
    """Read tensor by tensor it would come out as broken, or without the head that it had."""
    model = make_model(tmp_path / "model", tie_word_embeddings=True)
    change(model, edit)
    with pytest.raises(UserError, match=said):
        Weights(model)


def test_an_index_of_another_kind_is_refused(tmp_path):
    model = make_model(tmp_path / "a")
    for content in ("[]", '{"weight_map": []}', '{"weight_map": {"x": 3}}'):
        (model / "model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match="index"):
            Weights(model)
