"""MP-SAEs to and from SAELens' `matching_pursuit`; SAELens 6.54 computed the codes."""

import json

import numpy as np
import pytest
import torch
from sae.interop.cases import refusal
from safetensors.torch import load_file, save_file

from saelab.sae.interop.convert import (
    load_foreign_sae,
    save_dictionary_learning,
    save_sae_lens,
    to_foreign,
)
from saelab.sae.matching_pursuit import MatchingPursuitConfig

ATOMS = [[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, -0.8], [-0.48, 0.36, 0.8]]
B_DEC = [0.5, -1.0, 0.25]
ROWS = torch.tensor([[3, -2.5, 1], [-1, 2, 2.5], [2, 4, -3], [-4, -1, 0.5]])
CODES = {
    True: [
        [2.5288, 0, 0, 0.073824],
        [0, 0.767328, 1.5264, 4.2471933],
        [0.5829123, 2.212, 5.6, 0.8544002],
        [0, 0, 0.9445757, 2.6994712],
    ],
    False: [
        [3, 0, 0, 0],
        [0, 1, 0.0768001, 3.232563],
        [0.7424, 2.096, 4.8, 0.4715521],
        [0, 0, 0, 1.96],
    ],
}
"""By whether b_dec is subtracted. SAELens adds b_dec only where it subtracts it."""
CFG = {
    "d_in": 3,
    "d_sae": 4,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.2.hook_resid_post"},
    "residual_threshold": 0.0,
    "max_iterations": 4,
    "stop_on_duplicate_support": False,
    "architecture": "matching_pursuit",
}


@pytest.mark.parametrize("subtracts", [True, False])
def test_a_file_of_saelens_has_the_codes_that_saelens_computes(subtracts, tmp_path):
    atoms, b_dec = np.array(ATOMS), np.array(B_DEC)
    tensors = {"W_dec": torch.tensor(ATOMS), "b_dec": torch.tensor(B_DEC)}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(CFG | {"apply_b_dec_to_input": subtracts}))
    sae = load_foreign_sae(tmp_path)
    assert sae.config == MatchingPursuitConfig(d_sae=4, k=4)
    want = np.array(CODES[subtracts])
    assert np.abs(sae.encode(ROWS).dense().numpy() - want).max() < 5e-7
    x_hat = want @ atoms + (b_dec if subtracts else 0)
    assert np.abs(sae.reconstruct(ROWS).numpy() - x_hat).max() < 1e-6


def test_an_exported_pursuit_is_the_file_that_saelens_reads(tmp_path):
    sae = MatchingPursuitConfig(d_sae=4, k=3).build(3)
    save_sae_lens(sae, tmp_path)
    stored = load_file(tmp_path / "sae_weights.safetensors")
    assert set(stored) == {"W_dec", "b_dec"}
    assert torch.equal(stored["W_dec"], sae.W_dec)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert CFG.keys() == cfg.keys()
    settled = ("architecture", "residual_threshold", "stop_on_duplicate_support")
    settled += ("apply_b_dec_to_input", "normalize_activations")
    assert {name: cfg[name] for name in settled} == {name: CFG[name] for name in settled}
    assert (cfg["max_iterations"], cfg["d_in"], cfg["d_sae"]) == (3, 3, 4)
    again = load_foreign_sae(tmp_path)
    assert torch.equal(again.encode(ROWS).dense(), sae.encode(ROWS).dense())


def test_without_max_iterations_there_are_as_many_steps_as_dimensions(tmp_path):
    save_sae_lens(MatchingPursuitConfig(d_sae=4, k=1).build(3), tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(CFG | {"max_iterations": None}))
    assert to_foreign(load_foreign_sae(tmp_path)).steps == 3


def test_dictionary_learning_has_no_pursuit(tmp_path):
    sae = MatchingPursuitConfig(d_sae=4, k=3).build(3)
    assert "has no matching pursuit" in refusal(lambda: save_dictionary_learning(sae, tmp_path))
