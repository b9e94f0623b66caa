"""Small stores whose every number says where it belongs."""

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from activations.forked import Command

from saelab.activations.columns import Columns
from saelab.activations.format import Manifest, SiteSpec
from saelab.activations.sealed import Trailer
from saelab.activations.writer import StoreWriter

HOOK = "blocks.1.hook_resid_post"
GRADIENT = f"{HOOK}.gradient"
WIDE = "blocks.10.attn/hook_z"
HARVESTED = "blocks.1.attn.hook_z"


def make_manifest(**changes) -> Manifest:
    fields: dict[str, Any] = {
        "model": {"name": "m", "weights_digest": "w"},
        "sites": (
            SiteSpec(hook=HOOK, d_in=3),
            SiteSpec(hook=HOOK, d_in=3, kind="gradient"),
            SiteSpec(hook=WIDE, d_in=5),
        ),
        "dtype": "float32",
        "context_length": 6,
        "rows_policy": {"excluded_token_ids": [0]},
        "label_names": tuple(f"label {i}" for i in range(10)),
        "corpus": {"source": "numbers", "split": "train"},
        "contexts_per_unit": 4,
        "n_contexts": 10,
        "seed": 7,
    }
    return Manifest(**(fields | changes))


def make_columns(manifest: Manifest, unit: int) -> Columns:
    """Token = 100 * context + position; position 0 is special and has no row."""
    contexts = np.asarray(manifest.unit_contexts(unit))
    tokens = 100 * contexts[:, None] + np.arange(manifest.context_length)
    context, position = np.nonzero(np.ones_like(tokens[:, 1:]))
    position += 1
    token = tokens[context, position]
    labels = (token[:, None] >> np.arange(len(manifest.label_names))) % 2 == 1
    return Columns(
        token=token,
        position=position,
        context=contexts[context],
        document=contexts[context] // 3,
        contexts=tokens,
        labels=labels if manifest.label_names else None,
        excluded={"special": len(contexts)},
    )


def expected_rows(manifest: Manifest, name: str, token: np.ndarray) -> torch.Tensor:
    """What a site holds at these tokens: token + column / 8, every second column negative."""
    index = [site.name for site in manifest.sites].index(name)
    site = manifest.sites[index]
    values = token[:, None] + np.arange(site.d_in) / 8 + 10_000 * index
    return torch.from_numpy((values * (-1) ** np.arange(site.d_in)).astype(np.float32))


def make_activations(manifest: Manifest, columns: Columns) -> dict[str, torch.Tensor]:
    return {site.name: expected_rows(manifest, site.name, columns.token) for site in manifest.sites}


def write_store(path: Path, manifest: Manifest, *, pause: float = 0.0) -> Path:
    """Write what is missing of a store; `pause` seconds between units."""
    with StoreWriter.create(path, manifest) as writer:
        for unit in writer.missing_units():
            columns = make_columns(manifest, unit)
            writer.write_unit(unit, make_activations(manifest, columns), columns)
            time.sleep(pause)
    return path


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a store but the lock, by relative path."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "state")
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def overwrite(path: Path, data: bytes) -> None:
    """Replace a read-only file."""
    path.unlink()
    path.write_bytes(data)


def sealed_image(image: bytes, trailer: Trailer) -> bytes:
    """A file with a valid seal around any HDF5 image, as somebody hostile would make it."""
    end = trailer.payload_offset + trailer.payload_bytes
    covered = image[: trailer.payload_offset] + image[end:] + trailer.pack()
    return image + trailer.pack() + hashlib.sha256(covered).digest()


def hdf5_image(fill) -> bytes:
    """The bytes of an HDF5 file that `fill(file)` has filled."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110")) as file:
        fill(file)
    return buffer.getvalue()


def harvest_small_units(checkpoint, text, out):
    """The real harvest of a random model, two contexts a unit so that most kills hit one."""
    from saelab.activations import harvest as module
    from saelab.activations.corpus import load_corpus
    from saelab.lm.hf import load_hugging_face_model

    torch.set_num_threads(1)
    module.UNIT_CONTEXTS = 2  # pyrefly: ignore[bad-assignment]
    lm = load_hugging_face_model(str(checkpoint), device="cpu")
    corpus = load_corpus(str(text), lm, context_length=8)
    options = module.HarvestOptions(n_tokens=600, batch_size=2, gradients=True)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
    module.harvest(lm, hooks, corpus, out=out, options=options)


def content_of(store):
    """Every file but the manifest, whose provenance says when it was written."""
    return {name: data for name, data in files_of(store).items() if name != "manifest.json"}


def harvest_process(checkpoint, text, out, environment):
    """A harvest of a random model by the command line, in a process of its own."""
    arguments = ["harvest", "--model", checkpoint, "--sites", HARVESTED, "--text", text]
    arguments += ["--n-tokens", 9000, "--context-length", 16, "--out", out, "--device", "cpu"]
    return Command([str(argument) for argument in arguments], environment)


def text_corpus(source, lm, **options):
    """The corpus of a text, whose length can be asked for."""
    from saelab.activations.corpus import TextCorpus, load_corpus

    corpus = load_corpus(str(source), lm, **options)
    assert isinstance(corpus, TextCorpus)
    return corpus
