"""Merge one file of the base after another: what is in memory is never more than what one of them becomes."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longlora.errors import CheckpointError
from longlora.merge.changes import Change, Changes, LowRank, OtherWay, Whole
from longlora.models.shards import ShardWriter, StoredWeight, opened
from longlora.models.vocabulary import check_rows
from longlora.support.progress import shown


def check_covered(changes: Changes, stored: dict[str, StoredWeight]) -> None:
    """See that the base's files name the weights as the model does, where the adapter changes them.

    All others are copied under the names they have, whatever transformers makes of them when it loads them.

    Raises:
        OtherWay: they do not, as where experts are stored one by one and kept together in the model.
        CheckpointError: a weight that the adapter leaves alone does not fit the vocabulary it was trained with.
    """
    for name, change in changes.by_weight.items():
        if name == changes.output_embedding and name not in stored:
            continue
        if name not in stored:
            raise OtherWay(f"the base stores {name} under another name")
        if isinstance(change, LowRank) and stored[name].shape != changes.shapes[name]:
            raise OtherWay(f"the base stores {name} in another shape")
    for name, weight in stored.items():
        wanted = changes.shapes.get(name, weight.shape)
        if name not in changes.by_weight and name != changes.output_embedding and wanted != weight.shape:
            raise CheckpointError(
                f"{name} has shape {weight.shape} in the base and {wanted} in the model that was trained, and the "
                "adapter does not hold it: it was saved without its output embedding"
            )


def check_fits(adapter: Path, changes: Changes, tensors: Any, base: str) -> None:
    """See that the adapter's changes have the shapes of the weights that they change.

    Raises:
        CheckpointError: the vocabulary was grown before the adapter was trained, or it belongs to another base.
    """
    for name, change in changes.by_weight.items():
        shapes = [tuple(tensors.get_slice(part).get_shape()) for part in change.parts]
        if isinstance(change, LowRank):
            (_, width), (height, _) = shapes
            found: tuple[int, ...] = (width, height) if change.transposed else (height, width)
        else:
            (found,) = shapes
        wanted = changes.shapes[name]
        if found[1:] == wanted[1:] and len(found) > 1:
            check_rows(adapter, found=found[0], rows=wanted[0], base=base)
        elif found != wanted:
            raise CheckpointError(
                f"the adapter in {adapter} changes {name} of shape {found} and its base {base} has it in shape "
                f"{wanted}: it belongs to another base"
            )


def merge_shards(
    base: Path,
    stored: dict[str, StoredWeight],
    changes: Changes,
    adapter: Any,
    directory: Path,
    *,
    dtype: torch.dtype | None,
) -> None:
    """Write the merged weights in files that are cut as the base's are.

    Args:
        base: folder with the base's files.
        stored: what they hold.
        changes: what the adapter makes of it.
        adapter: the adapter's opened file.
        directory: where to write.
        dtype: of the merged floating-point weights; None leaves each in the type it has in the base.

    Raises:
        CheckpointError: a file cannot be read, or the disk is too small.
    """
    _check_space(directory, stored, dtype)
    files = sorted({weight.file for weight in stored.values()})
    writer = ShardWriter(directory)
    for file in shown(files, "merging files", total=len(files), progress=len(files) > 1):
        with opened(base / file) as reader:
            writer.write(file, _merged(reader, stored, file, changes, adapter, dtype))
    writer.finish()


def _merged(
    reader: Any,
    stored: dict[str, StoredWeight],
    file: str,
    changes: Changes,
    adapter: Any,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    # A file may hold tied weights twice. What the adapter makes of the second follows from the first.
    second = changes.output_embedding if changes.input_embedding in stored else None
    for name, place in stored.items():
        if place.file != file or name == second:
            continue
        weight = reader.get_tensor(name)
        result[name] = changed(weight, changes.by_weight.get(name), adapter, _target(place, dtype))
        if second and name == changes.input_embedding and changes.unties:
            own = changed(weight, changes.by_weight.get(second), adapter, _target(place, dtype))
            result[second] = own.clone() if own.data_ptr() == result[name].data_ptr() else own
    return result


def changed(weight: Tensor, change: Change | None, adapter: Any, dtype: torch.dtype | None) -> Tensor:
    """Apply a change in float32 and round once; without one the weight is only cast."""
    if isinstance(change, Whole):
        weight = adapter.get_tensor(change.tensor)
    elif isinstance(change, LowRank):
        a, b = adapter.get_tensor(change.a).float(), adapter.get_tensor(change.b).float()
        update = (b @ a).T if change.transposed else b @ a
        weight = torch.add(weight.float(), update, alpha=change.scaling)
    return weight.contiguous() if dtype is None else weight.to(dtype).contiguous()


def _target(place: StoredWeight, dtype: torch.dtype | None) -> torch.dtype | None:
    return None if place.dtype is None else dtype or place.dtype


def _check_space(directory: Path, stored: dict[str, StoredWeight], dtype: torch.dtype | None) -> None:
    needed = sum(
        torch.Size(weight.shape).numel() * (_target(weight, dtype) or torch.int64).itemsize
        for weight in stored.values()
    )
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"the merged model takes up to {needed / 2**30:,.1f} GiB and {directory.parent} has {free / 2**30:,.1f} "
            "GiB left; make room or name another place"
        )
