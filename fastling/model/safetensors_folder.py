"""Hugging Face's folders of safetensors, one file or numbered shards: rows in, shards out.

Pickle files are refused: they can run code. So are names that lead out of the folder.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastling import files
from fastling.errors import RunError, UserError
from fastling.json_files import read_json

_INDEX = "model.safetensors.index.json"
_FLOATING = ("F64", "F32", "F16", "BF16")


class SafetensorsFolder:
    """The tensors of a Hugging Face folder: `shapes` and `read`; files stay open until `close`."""

    def __init__(self, folder: Path):
        self._open_files = ExitStack()
        self._slices = {}
        self._file_of: dict[str, Path] = {}
        try:
            for file in _files_of(folder):
                self._open(file)
        except BaseException:
            self.close()
            raise
        self.shapes = {name: tuple(piece.get_shape()) for name, piece in self._slices.items()}

    def _open(self, file: Path) -> None:
        if not file.is_file():
            raise UserError(str(file), "is missing", f"{_INDEX} names it: copy the whole folder.")
        files.check_no_pointer(file)
        open(file, "rb").close()  # without permission to read, safetensors says that there is no such file
        try:
            tensors = self._open_files.enter_context(safe_open(file, framework="pt"))
        except SafetensorError as error:
            raise UserError(str(file), f"is damaged: {error}", "Download it again.") from None
        for name in tensors.keys():
            other = self._file_of.setdefault(name, file)
            if other != file:
                fix = "One of them belongs to other weights: copy the folder again."
                raise UserError(str(file), f"holds {name}, which {other.name} holds as well", fix)
            self._slices[name] = tensors.get_slice(name)
            if self._slices[name].get_dtype() not in _FLOATING:
                what = f"{name} is quantized: {self._slices[name].get_dtype()}"
                raise UserError(str(file), what, "Give the model's unquantized original.")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows start to stop of one tensor, on the CPU in the dtype of the file."""
        return self._slices[name][start:stop]

    def close(self) -> None:
        self._open_files.close()


def _files_of(folder: Path) -> list[Path]:
    """Return the files of a model. As in transformers, all tensors in them are its weights."""
    whole = folder / "model.safetensors"
    if (folder / _INDEX).is_file():
        found: list[Path] = []
        for file in sorted(set(_weight_map(folder / _INDEX).values())):
            relative = PurePosixPath(file.replace("\\", "/"))
            if relative.is_absolute() or ".." in relative.parts or ":" in file:
                raise UserError(str(folder / _INDEX), f"names a file outside its folder: {file}")
            found.append(folder / relative)
        if whole.is_file() and whole not in found:
            what = f"holds weights twice: {whole.name}, and the files that {_INDEX} names"
            raise UserError(str(folder), what, "Delete those that are not the model's.")
        return found
    if whole.is_file():
        return [whole]
    if any(folder.glob("model-*-of-*.safetensors")):
        raise UserError(str(folder), f"has numbered shards but no {_INDEX}", "Copy that file too.")
    if any(folder.glob("*.bin")):
        fix = "Convert it: transformers' save_pretrained writes safetensors."
        raise UserError(str(folder), "holds pickle files (.bin), which can run code", fix)
    fix = "Copy the model's weights there as safetensors; GGUF and other formats are not read."
    raise UserError(str(folder), "holds no model.safetensors", fix)


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise UserError(str(index), "has no weight_map of tensors to files", "Download it again.")
    return found


def save_weights(
    named_tensors: Iterator[tuple[str, Tensor]],
    folder: str | Path,
    *,
    max_shard_bytes: int = 5 * 2**30,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write model.safetensors, or numbered shards and their index, holding one shard in memory.

    Files are written under other names, flushed, and renamed when all are whole; weights that an
    earlier export left in `folder` go. Raises RunError when the disk refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    asides: list[Path] = []
    weight_maps: list[dict[str, int]] = []  # for each shard: the bytes of each of its tensors
    for shard in _shards(named_tensors, max_shard_bytes, dtype):
        aside = folder / f".shard-{len(asides) + 1}.part"
        aside.touch()
        mode = aside.stat().st_mode
        try:
            save_file(shard, aside, metadata={"format": "pt"})
        except SafetensorError as error:
            for part in (*asides, aside):  # a full disk is no place to leave them
                part.unlink()
            raise RunError(str(folder), f"the weights could not be written: {error}") from None
        aside.chmod(mode)  # safetensors makes its files unreadable to others
        asides.append(aside)
        weight_maps.append({name: tensor.nbytes for name, tensor in shard.items()})
    total = len(asides)
    names = (
        ["model.safetensors"]
        if total == 1
        else [f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
    )
    files.flush(folder)
    for aside, name in zip(asides, names, strict=True):
        aside.replace(folder / name)
    if total > 1:
        _write_index(folder, dict(zip(names, weight_maps, strict=True)))
        names.append(_INDEX)
    for file in folder.glob("model*.safetensors*"):
        if file.name not in names:
            file.unlink()
    files.flush(folder)


def _shards(
    named_tensors: Iterator[tuple[str, Tensor]], max_bytes: int, dtype: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    shard_bytes = 0
    for name, tensor in named_tensors:
        num_bytes = tensor.numel() * dtype.itemsize
        if shard and shard_bytes + num_bytes > max_bytes:
            yield shard
            shard, shard_bytes = {}, 0
        # Always a copy: pieces of a fused tensor share memory, which safetensors refuses.
        shard[name] = tensor.to(dtype, copy=True).contiguous()
        shard_bytes += num_bytes
    yield shard


def _write_index(folder: Path, bytes_in_file: dict[str, dict[str, int]]) -> None:
    weight_map = {name: file for file, held in bytes_in_file.items() for name in held}
    total_size = sum(sum(held.values()) for held in bytes_in_file.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    files.write_text(folder / _INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
