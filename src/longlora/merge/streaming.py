"""Merge the base file by file; memory is at most one merged file."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longlora.errors import CheckpointError
from longlora.merge.changes import Changes, ShardMergeUnsupported, WeightChange
from longlora.models.shards import ShardWriter, StoredWeight, opened
from longlora.models.vocabulary import check_rows
from longlora.support.progress import shown


@dataclass(frozen=True, kw_only=True)
class ShardMerge:
    """An adapter, and the files of the base that it is merged into."""

    base: Path  # folder with the base's files
    stored: dict[str, StoredWeight]  # their contents
    changes: Changes  # the adapter's changes to them
    adapter: Any  # the adapter's open file
    dtype: torch.dtype | None  # of the merged floating-point weights; None keeps the types of the base

    def check(self, adapter: Path, base: str) -> None:
        """Check that the weights that the adapter changes have the same names and shapes in the files and in the model.

        All others are copied under their names in the files, however transformers converts them on loading.

        Raises:
            ShardMergeUnsupported: they do not, for example because experts are stored separately but combined in the
                model.
            CheckpointError: the adapter belongs to another base, or to one with another vocabulary.
        """
        shapes, by_weight, output = self.changes.model.shapes, self.changes.by_weight, self.changes.tied_output
        for name, change in by_weight.items():
            if name not in self.stored and name != output:
                raise ShardMergeUnsupported(f"the base stores {name} under another name")
            if change.is_low_rank and name in self.stored and self.stored[name].shape != shapes[name]:
                raise ShardMergeUnsupported(f"the base stores {name} in another shape")
        for name, weight in self.stored.items():
            wanted = shapes.get(name, weight.shape)
            if name not in by_weight and name != output and wanted != weight.shape:
                raise CheckpointError(
                    f"{name} has shape {weight.shape} in the base and {wanted} in the trained model, but is not in the "
                    "adapter: it was saved without its output embedding"
                )
        for name, change in by_weight.items():
            found, wanted = self._shape(change), shapes[name]
            if found[1:] == wanted[1:] and len(found) > 1:
                check_rows(adapter, found=found[0], rows=wanted[0], base=base)
            elif found != wanted:
                raise CheckpointError(
                    f"the adapter in {adapter} changes {name} of shape {found}, but its base {base} has it in shape "
                    f"{wanted}: it belongs to another base"
                )

    def write(self, directory: Path) -> None:
        """Write the merged weights to files with the same division as the base's.

        Raises:
            CheckpointError: a file cannot be read, or there is not enough disk space.
        """
        needed = sum(
            torch.Size(weight.shape).numel() * (self._target(weight) or torch.int64).itemsize
            for weight in self.stored.values()
        )
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise CheckpointError(
                f"the merged model takes up to {needed / 2**30:,.1f} GiB, but {directory.parent} has only "
                f"{free / 2**30:,.1f} GiB left; make room or choose another location"
            )
        files = sorted({weight.file for weight in self.stored.values()})
        writer = ShardWriter(directory)
        for file in shown(files, "merging files", total=len(files), show_progress=len(files) > 1):
            with opened(self.base / file) as reader:
                writer.write(file, self._merged(reader, file))
        writer.finish()

    def _merged(self, reader: Any, file: str) -> dict[str, Tensor]:
        changes, result = self.changes, dict[str, Tensor]()
        first = changes.model.input_embedding
        # Files may contain tied weights twice. The second is then derived from the first.
        second = changes.tied_output if first in self.stored else None
        for name, place in self.stored.items():
            if place.file != file or name == second:
                continue
            weight, dtype = reader.get_tensor(name), self._target(place)
            result[name] = changed(weight, changes.by_weight.get(name), self.adapter, dtype)
            if second and name == first and changes.unties:
                own = changed(weight, changes.by_weight.get(second), self.adapter, dtype)
                result[second] = own.clone() if own.data_ptr() == result[name].data_ptr() else own
        return result

    def _target(self, place: StoredWeight) -> torch.dtype | None:
        return None if place.dtype is None else self.dtype or place.dtype

    def _shape(self, change: WeightChange) -> tuple[int, ...]:
        shapes = [tuple(self.adapter.get_slice(tensor).get_shape()) for tensor in change.tensors]
        if not change.is_low_rank:
            return shapes[0]
        (_, width), (height, _) = shapes
        return (width, height) if change.transposed else (height, width)


def changed(weight: Tensor, change: WeightChange | None, adapter: Any, dtype: torch.dtype | None) -> Tensor:
    """Apply a change in float32 and round once; without a change, only cast the weight."""
    if change:
        tensors = [adapter.get_tensor(tensor) for tensor in change.tensors]
        if change.is_low_rank:
            a, b = (tensor.float() for tensor in tensors)
            update = (b @ a).T if change.transposed else b @ a
            weight = torch.add(weight.float(), update, alpha=change.scaling)
        else:
            (weight,) = tensors
    return weight.contiguous() if dtype is None else weight.to(dtype).contiguous()
