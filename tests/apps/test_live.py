import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_browser.data.catalogue import RunCard, read_card
from feature_browser.live.model import live_run, lock_of
from feature_browser.live.prompt import read_prompt

from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.host.host import Host
from saelab.lm.prompt import prompt_tokens

PROMPT = "the big cat sat on a mat"


@pytest.fixture
def card(live_runs: Path) -> RunCard:
    return read_card(live_runs / "topk", live_runs)


@pytest.fixture
def live(card: RunCard) -> Host:
    return live_run(card)


@pytest.fixture
def changed(live_runs: Path, tmp_path: Path):
    """The run with some values of its files changed."""

    def change(name: str, **values: object) -> RunCard:
        path = Path(shutil.copytree(live_runs / "topk", tmp_path / "topk"))
        old = read_sealed_json(path / name)
        write_sealed_json(path / name, old | values)
        return read_card(path, tmp_path)

    return change


def test_a_run_and_its_model_are_loaded_once_and_runs_share_the_model(
    card: RunCard, live: Host, live_runs: Path, tmp_path: Path
):
    assert live_run(card) is live
    copy = Path(shutil.copytree(live_runs / "topk", tmp_path / "copy"))
    other = live_run(read_card(copy, tmp_path))
    assert other.lm is live.lm
    assert lock_of(other.lm) is lock_of(live.lm)
    assert other.sae is not live.sae


def test_a_model_that_cannot_be_found_is_said(changed):
    with pytest.raises(UsageError, match="The model /no/such/model is not there"):
        live_run(changed("provenance.json", model=_model(name="/no/such/model")))


def test_another_model_than_the_recorded_one_is_refused(changed, live: Host):
    with pytest.raises(UsageError, match="was trained on"):
        live_run(changed("provenance.json", model=_model(live, weights_digest="0" * 64)))


def _model(live: Host | None = None, **changes: str) -> dict[str, str]:
    facts = {"name": "tiny", "weights_digest": "", "tokenizer_digest": "", "dtype": "float32"}
    if live is not None:
        facts |= {name: getattr(live.lm.info, name) for name in facts}
    return facts | changes


@pytest.mark.parametrize(
    ("model", "reason"), [(None, "trained on arrays"), ({"name": "tiny"}, "does not say which")]
)
def test_a_run_without_a_whole_record_of_its_model_is_refused(changed, model, reason: str):
    with pytest.raises(UsageError, match=reason):
        live_run(changed("provenance.json", model=model))


@pytest.mark.parametrize(
    ("site", "reason"),
    [("blocks.7.hook_resid_post", "has no hook"), ("blocks.0.mlp.hook_post", "reads 16 numbers")],
)
def test_a_hook_that_is_not_there_or_does_not_fit_is_said(changed, site: str, reason: str):
    with pytest.raises(UsageError, match=reason):
        live_run(changed("config.json", site=site))


def test_missing_and_damaged_weights_are_said(live_runs: Path, tmp_path: Path):
    path = Path(shutil.copytree(live_runs / "topk", tmp_path / "topk"))
    (path / "weights.safetensors").write_bytes(b"damaged")
    card = read_card(path, tmp_path)
    with pytest.raises(UsageError):
        live_run(card)
    (path / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights"):
        live_run(card)


def test_the_module_imports_neither_torch_nor_a_language_model():
    code = (
        "import sys, feature_browser.live.model, feature_browser.pages.try_it.view;"
        "import feature_browser.pages.latents.search;"
        "import feature_browser.pages.steering.live_view, feature_browser.draw.annotate;"
        "assert not {'torch', 'transformer_lens', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Readings


def test_a_reading_has_the_codes_of_every_token_but_special_ones(live: Host):
    reading = read_prompt(live, PROMPT)
    assert reading.tokens == ("<bos>", *PROMPT.split())
    assert [bool(why) for why in reading.unread] == [True] + [False] * 7
    assert reading.unread[0] == "a special token: this SAE is not trained on it"
    ids = torch.tensor([prompt_tokens(live.lm, PROMPT)])
    dense = live.sae.encode(live.lm.capture(ids, [live.reads])[live.reads][0]).dense()
    written = np.zeros((len(reading.tokens), live.sae.d_sae))
    written[reading.position, reading.latent] = reading.value
    assert np.allclose(written[1:], dense[1:].detach().numpy(), atol=1e-5)
    assert not written[0].any()


def test_log_probabilities_are_the_models_and_the_likeliest_token_is_the_target(live: Host):
    reading = read_prompt(live, PROMPT)
    ids = torch.tensor([prompt_tokens(live.lm, PROMPT)])
    log_probs = live.lm.logits(ids)[0].log_softmax(-1)
    assert np.isnan(reading.log_prob[0])
    expected = [float(log_probs[i, ids[0, i + 1]]) for i in range(len(PROMPT.split()))]
    assert np.allclose(reading.log_prob[1:], expected, atol=1e-5)
    assert reading.target.token == int(log_probs[-1].argmax())
    assert reading.target == reading.predicted[0]


def test_readings_taken_at_once_are_those_taken_alone(live: Host):
    prompts = [" ".join(PROMPT.split()[:n]) for n in (2, 3, 4, 5, 6, 7)]
    alone = [read_prompt(live, prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: read_prompt(live, prompt), prompts))
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        assert np.array_equal(one.latent, other.latent)
        assert np.array_equal(one.attribution, other.attribution)


def test_an_attribution_is_what_a_small_change_of_the_latent_does_to_the_logit(live: Host):
    reading = read_prompt(live, PROMPT, "dog")
    ids = torch.tensor([prompt_tokens(live.lm, PROMPT)])
    row = int(np.abs(reading.attribution).argmax())
    at, latent, value = reading.position[row], reading.latent[row], reading.value[row]
    step = 1e-2

    def logit(sign: int) -> float:
        def nudge(x: torch.Tensor) -> torch.Tensor:
            pushed = x.clone()
            pushed[0, at] += sign * step * live.sae.W_dec[latent]
            return pushed

        logits = live.lm.logits(ids, {live.reads: nudge})[0, -1].double()
        return float(logits[reading.target.token] - logits.mean())

    slope = (logit(1) - logit(-1)) / (2 * step)
    assert reading.attribution[row] == pytest.approx(value * slope, rel=0.02)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  ", "is empty"),
        ("the <b>zebra</b> sat", "does not know “<b>zebra</b>”"),
        ("cat " * 40, "has 41 tokens, 9 more than the 32"),
        ("x" * 100_001, "100001 characters"),
        ("<bos>", "has no tokens of"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_said_in_one_sentence(live: Host, text: str, reason: str):
    with pytest.raises(UsageError) as error:
        read_prompt(live, text)
    assert reason in str(error.value)


def test_where_a_site_cannot_be_differentiated_by_there_is_no_attribution(changed):
    live = live_run(changed("config.json", site="blocks.0.hook_resid_mid"))
    reading = read_prompt(live, PROMPT)
    assert len(reading.value) == 4 * 7
    assert np.isnan(reading.attribution).all()


@pytest.mark.parametrize("target", ["cat sat", "zebra"])
def test_a_target_that_is_not_one_known_token_is_said(live: Host, target: str):
    with pytest.raises(UsageError, match="give exactly one token"):
        read_prompt(live, PROMPT, target)
