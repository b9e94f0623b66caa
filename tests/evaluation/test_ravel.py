"""RAVEL on a model whose site holds two attributes, with latents of one each or of both at once."""

import json
from typing import Any

import pytest
import torch
from evaluation.cases import sae_with
from evaluation.lookup import HOOK, LookupModel
from stand_in import answer_as

from saelab.config import UsageError
from saelab.evaluation.tasks.entities import read_entities, says
from saelab.evaluation.tasks.interchange import exchanged
from saelab.evaluation.tasks.known import KnownPrompt, Pair, asking
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.ravel import measure_ravel
from saelab.host.host import Host
from saelab.lm.greedy import continue_greedily
from saelab.sae.topk import TopKConfig

N = 64
COUNTRIES = ("France", "Japan", "Peru", "Kenya")
LANGUAGES = ("Red", "Green", "Blue", "Grey")
CITIES = [f"City{i}" for i in range(N)]
WORDS = [*CITIES, *COUNTRIES, *LANGUAGES, "lies", "in", "speaks", "."]
CITY_VALUES = torch.stack([torch.arange(N) % 4, torch.arange(N) // 4 % 4], dim=1)
EMBEDDING = torch.zeros(len(WORDS), 8)
EMBEDDING[:N] = torch.nn.functional.one_hot(CITY_VALUES, 4).flatten(1).float()
SETTING = {"n_pairs": 1000, "seed": 0}


def answer(tokens, x):
    """Behind `in` the city's country, behind `speaks` its language, else a full stop."""
    logits = torch.zeros(*tokens.shape, len(WORDS))
    logits[..., WORDS.index(".")] = 1
    known = 10 * x.cumsum(dim=1)
    for word, first, block in (("in", N, known[..., :4]), ("speaks", N + 4, known[..., 4:])):
        asked = (tokens == WORDS.index(word))[..., None]
        logits = logits + torch.nn.functional.pad(block * asked, (first, len(WORDS) - first - 4))
    return logits


@pytest.fixture
def lm(random_lm) -> Any:
    model = LookupModel(WORDS, EMBEDDING, answer)
    answer_as(model, random_lm)
    return model


@pytest.fixture
def folder(tmp_path):
    """Of eight cities another country is claimed than the model knows."""
    values = {
        name: {
            "Country": COUNTRIES[(int(country) + (i < 8)) % 4],
            "Language": LANGUAGES[int(language)],
        }
        for i, (name, (country, language)) in enumerate(zip(CITIES, CITY_VALUES, strict=True))
    }
    templates = {"Country": ["%s lies in"], "Language": ["%s speaks"]}
    (tmp_path / "ravel_town_entity_attributes.json").write_text(json.dumps(values))
    (tmp_path / "ravel_town_attribute_to_prompts.json").write_text(json.dumps(templates))
    return tmp_path


def test_usual_attributes_that_the_files_lack_are_not_asked_for(folder):
    for name in ("entity_attributes", "attribute_to_prompts"):
        (folder / f"ravel_town_{name}.json").rename(folder / f"ravel_city_{name}.json")
    assert list(read_entities(folder, "city", ()).templates) == ["Country", "Language"]
    with pytest.raises(UsageError, match="'Continent'"):
        read_entities(folder, "city", ("Country", "Continent"))


def together() -> Any:
    """An SAE with one latent for each pair of a country and a language."""
    atoms = EMBEDDING[:16].clone()
    sae = TopKConfig(d_sae=16, k=1).build(8)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T / 2)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def test_latents_of_one_attribute_change_it_alone(lm, folder):
    reader = TextReader(Host.at(lm, sae_with(torch.eye(8)), HOOK))
    data = read_entities(folder, "town", ())
    task = measure_ravel(reader, data, asked="", setting=SETTING)["town"]
    assert task.known == {"Country": [N - 8, N], "Language": [N, N]}
    assert task.disentanglement.value == 1
    for one in task.attributes.values():
        assert one.n_latents == 4
        assert one.cause.value == one.isolation.value == one.cause_whole == one.cause_all == 1
        assert one.isolation_none == 1


def test_latents_of_both_attributes_cannot(lm, folder):
    reader = TextReader(Host.at(lm, together(), HOOK))
    data = read_entities(folder, "town", ())
    task = measure_ravel(reader, data, asked="", setting=SETTING)["town"]
    assert task.disentanglement.value < 0.6
    for one in task.attributes.values():
        assert one.cause_all == one.isolation_none == 1


def test_the_exchange_is_a_mix_of_codes_decoded_without_the_error(small_run, random_lm):
    """Second method: dense codes of both prompts, mixed and decoded by hand."""
    host = Host.of_run(small_run, random_lm)
    site = small_run.config.site
    prompts = torch.tensor([[0, 3, 4, 5], [0, 6, 7, 8]])
    at, source_x = torch.tensor([1, 2]), random_lm.capture(prompts.flip(0), [site])[site]
    pairs = [
        Pair(
            KnownPrompt("", "", prompts[i].numpy(), int(at[i]), 0, source_x[i, 0], source_x[i, 0]),
            KnownPrompt("", "", prompts[i].numpy(), 0, 0, source_x[i, 3], source_x[i, 3]),
        )
        for i in range(2)
    ]
    weights = (torch.arange(host.sae.d_sae) % 3 == 0).float()
    found = random_lm.run(prompts, edits=exchanged(host, pairs, weights), hooks=[site])
    x = random_lm.capture(prompts, [site])[site]
    rows = torch.arange(2)
    base, source = (host.sae.encode(each).dense() for each in (x[rows, at], source_x[:, 3]))
    mixed = (1 - weights) * base + weights * source
    wanted = x.clone()
    wanted[rows, at] = mixed @ host.sae.W_dec + host.sae.b_dec
    torch.testing.assert_close(found.activations[site], wanted, rtol=1e-4, atol=1e-5)
    whole = random_lm.run(prompts, edits=exchanged(host, pairs, None), hooks=[site])
    torch.testing.assert_close(whole.activations[site][rows, at], source_x[:, 3])


def test_greedy_continuations_are_those_of_whole_passes(random_lm, lm):
    prompts = torch.tensor([[0, 3, 4], [0, 6, 7]])
    found, whole = continue_greedily(random_lm, prompts, 3), prompts
    for _ in range(3):
        said = random_lm.logits(whole)[:, -1].argmax(dim=1)
        whole = torch.cat([whole, said[:, None]], dim=1)
    assert torch.equal(found, whole[:, 3:])
    ids = torch.tensor([lm.tokenizer.encode("City5 lies in")])
    assert lm.tokenizer.text(continue_greedily(lm, ids, 2)[0]) == "Japan ."


def test_the_token_that_ends_the_entity_is_found(lm):
    tokens, at = asking(lm, "City5", "in %s lies in")
    assert (len(tokens), at) == (4, 1)


@pytest.mark.parametrize(
    ("completion", "value", "right"),
    [
        (" the United States of", "United States", True),
        (" Nigeria and", "Niger", False),
        (" Congo", "Congo-Kinshasa", True),
        (' Congo"', "Congo-Kinshasa", False),
        (" French.", "English, French", True),
        ("\nFrance", "France", False),
        ("", "France", False),
    ],
)
def test_what_counts_as_an_answer(completion, value, right):
    assert says(completion, value) == right


def test_bad_files_give_one_sentence(folder):
    with pytest.raises(UsageError, match="no attribute 'Mayor'"):
        read_entities(folder, "town", ("Mayor",))
    with pytest.raises(UsageError, match="needs two"):
        read_entities(folder, "town", ("Country",))
    (folder / "ravel_town_attribute_to_prompts.json").write_text('{"Country": ["%s is %s"]}')
    with pytest.raises(UsageError, match="2 times %s"):
        read_entities(folder, "town", ())


def test_a_model_that_knows_too_little_says_so(lm, folder):
    reader = TextReader(Host.at(lm, sae_with(torch.eye(8)), HOOK))
    values = {name: {"Country": "Atlantis", "Language": "Red"} for name in CITIES}
    (folder / "ravel_town_entity_attributes.json").write_text(json.dumps(values))
    with pytest.raises(
        UsageError, match=r"there are none\. Country: .* 0 of 64 .* makes 0 pairs.*16 of 64"
    ):
        measure_ravel(reader, read_entities(folder, "town", ()), asked="", setting=SETTING)
