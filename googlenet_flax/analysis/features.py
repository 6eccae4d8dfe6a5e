"""Features of pictures: what a part of a trained network computes, written to a file.

They are written batch by batch, so that memory does not grow with the number of pictures.
"""

import collections
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from googlenet_flax.analysis.endpoints import activations
from googlenet_flax.data.decode import printable
from googlenet_flax.data.image_set import Batch, Split
from googlenet_flax.runs.prediction import read_batches
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError, writing
from googlenet_flax.runtime.files import OUT_HINT, check_writable, replacing
from googlenet_flax.runtime.streams import tell
from googlenet_flax.training.evaluation import padded_batches
from googlenet_flax.training.sharding import fit_batch_size

NORMS = ("none", "l2")
TASK = "computing features"  # Shown beside the progress bar.
SMALLEST = np.finfo(np.float32).tiny  # Avoids division by 0.


def check_out(out: pathlib.Path) -> None:
    """Raises a `UserError` unless a new NPZ file can be written.

    One that exists is not replaced, because it may have taken long to compute.
    """
    if out.suffix.lower() != ".npz":
        raise UserError(f"--out is {printable(out)} but must end in .npz")
    if os.path.lexists(out):
        raise UserError(f"{printable(out)} exists: delete it, or name another --out=FILE")
    check_writable(out)


def create_extractor(
    predictor: Predictor, layer: str, norm: str = "none"
) -> Callable[[Batch], np.ndarray]:
    """Creates a function that computes the features of a batch on all devices.

    The function takes a batch as `Predictor.log_probabilities` does, and returns float32
    `[B, C]` or, for a layer of maps, `[B, H, W, C]`. The layer is one of
    `endpoints.ENDPOINTS`. The norm `"l2"` divides the features of each picture by their
    Euclidean norm, so that the dot product of two vectors is the cosine of their angle.
    """
    preprocess = predictor.description.preprocess
    model = predictor.description.create_model(predictor.devices)

    def step(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
        images = preprocess(batch["image"], batch.get("extent"))
        features = activations(model, variables, images, [layer])[layer]
        features = features.astype(jnp.float32)
        if norm == "none":
            return features
        axes = tuple(range(1, features.ndim))
        length = jnp.sqrt(jnp.sum(jnp.square(features), axes, keepdims=True))
        return features / jnp.maximum(length, SMALLEST)

    parallel_step = jax.pmap(step, in_axes=(None, 0), devices=predictor.devices)

    def extract(batch: Batch) -> np.ndarray:
        shards = parallel_step(predictor.variables, predictor.split(batch))
        return np.concatenate(jax.device_get(shards))

    return extract


def picture_batches(
    predictor: Predictor, pictures: Sequence[pathlib.Path], batch_size: int
) -> Iterator[Batch]:
    """Yields batches for `write_features`, with the path of each picture as `picture`.

    Pictures that cannot be read are named on stderr and masked.
    """
    with tqdm.tqdm(total=len(pictures), desc=TASK, leave=False, disable=None) as bar:
        for paths, errors, batch in read_batches(predictor, pictures, batch_size):
            names = [printable(path) for path in paths]
            for name, error in zip(names, errors, strict=True):
                if error:
                    tell(f"{name} cannot be read: {error}")
            mask = np.array([not error for error in errors])
            yield {**batch, "picture": np.array(names), "mask": mask}
            bar.update(len(paths))


def split_batches(predictor: Predictor, split: Split, batch_size: int) -> Iterator[Batch]:
    """Yields batches for `write_features`, with the name of each picture as `picture`."""
    batch_size = fit_batch_size(batch_size, len(split), len(predictor.devices))
    for batch in padded_batches(split, np.arange(len(split)), batch_size, task=TASK):
        names = [split.name(index) for index in batch["index"].tolist()]
        yield {**batch, "picture": np.array(names)}


def write_features(
    out: pathlib.Path,
    extract: Callable[[Batch], np.ndarray],
    batches: Iterable[Batch],
    **more: np.ndarray,
) -> tuple[int, ...]:
    """Writes the features of all examples to an NPZ file, completely or not at all.

    Args:
      out: The file to write. Its folder needs space for the features twice.
      extract: The result of `create_extractor`.
      batches: Batches of equal size. Examples whose `mask` is false are left out. Arrays
        other than `image`, `extent` and `mask` are written too.
      **more: Further arrays to write.

    Returns:
      The shape of the array `features`, float32 `[N, C]` or `[N, H, W, C]`.

    Raises:
      UserError: No example can be read, or the file cannot be written.
    """
    columns = collections.defaultdict(list)
    count, shape = 0, ()
    with writing(out, OUT_HINT), tempfile.TemporaryFile(dir=out.parent) as rows:
        for batch in batches:
            readable = np.flatnonzero(batch["mask"])
            features = extract(batch)[readable]
            rows.write(features.data)
            count, shape = count + len(features), features.shape[1:]
            for name, values in batch.items():
                if name not in ("image", "extent", "mask"):
                    columns[name].append(values[readable])
        if not count:
            raise UserError("no picture can be read: nothing was written")
        shape, arrays = (count, *shape), {n: np.concatenate(p) for n, p in columns.items()}
        with replacing(out) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in {**arrays, **more}.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array)
            # Copied in pieces, as rows mapped into memory would count as used memory.
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            rows.seek(0)
            with archive.open("features.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                shutil.copyfileobj(rows, entry)
    return shape
