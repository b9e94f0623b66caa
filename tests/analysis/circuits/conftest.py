"""The random models of the circuit tests, in float64."""

import pytest
from analysis.circuits.cases import frozen_of, hosts, prompt_of, save_random


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def lm64(request, tmp_path_factory):
    """Three random layers in float64: layer norms and positions, or RMS, rotary and grouped."""
    import torch

    from saelab.lm.load import load_language_model

    directory = save_random(tmp_path_factory.mktemp(request.param), request.param)
    return load_language_model(directory, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def frozen(lm64):
    """One prompt with SAEs of four variants, and a transcoder for the last MLP."""
    return frozen_of(lm64, transcoder=2)


@pytest.fixture(scope="session")
def gpt64(tmp_path_factory):
    """The random GPT-2 alone."""
    import torch

    from saelab.lm.load import load_language_model

    directory = save_random(tmp_path_factory.mktemp("gpt2"), "gpt2")
    return load_language_model(directory, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def saes(gpt64):
    """SAEs of four variants for it, and a transcoder for the last MLP."""
    return hosts(gpt64, transcoder=2)


@pytest.fixture(scope="session")
def tokens(gpt64):
    """The prompt that they read."""
    return prompt_of(gpt64)
