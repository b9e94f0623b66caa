import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from saelab.files import sha256_file
from saelab.formats.json_file import read_config
from saelab.lm.tiny import MODEL_DIR
from saelab.lm.tiny.tasks import TASKS, accuracies
from tools.tiny.architecture import load_model, logits_of
from tools.tiny.heads import HeadReport, measure_heads

WEIGHTS = MODEL_DIR / "model.safetensors"


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def scores(model):
    return accuracies(logits_of(model), 400, longest=48)


@pytest.fixture(scope="module")
def shipped():
    return read_config(HeadReport, MODEL_DIR / "heads.json")


@pytest.fixture(scope="module")
def measured(model):
    return measure_heads(model, 30, seed=5)


def test_weights_are_bf16_and_at_most_eight_megabytes():
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} == {torch.bfloat16}


def test_card_names_the_digest_of_the_weights():
    assert sha256_file(WEIGHTS) in (MODEL_DIR / "MODEL_CARD.md").read_text()


def test_finding_the_model_imports_neither_torch_nor_transformers():
    code = "import sys, saelab.lm.tiny; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.exhaustive
@pytest.mark.parametrize("of", TASKS, ids=lambda of: of.name)
def test_shipped_weights_master(scores, of):
    assert scores[of.name] >= of.required


@pytest.mark.exhaustive
def test_heads_do_what_the_shipped_table_says(measured, shipped):
    for role, (best, *_) in shipped.roles.items():
        assert best in measured.roles[role], role


@pytest.mark.exhaustive
@pytest.mark.parametrize("score", ["previous_token", "duplicate_token", "induction"])
def test_attention_of_every_head_is_as_in_the_shipped_table(measured, shipped, score):
    for here, there in zip(measured.heads, shipped.heads, strict=True):
        assert getattr(here, score) == pytest.approx(getattr(there, score), abs=0.15)


@pytest.mark.exhaustive
def test_removing_the_heads_of_a_role_together_breaks_its_behaviour(measured, shipped):
    for report in (measured, shipped):
        assert report.accuracy_without_induction_heads < report.induction_accuracy - 0.3
        gap = report.recipient_logit_difference - report.recipient_logit_without_name_movers
        assert gap > 0.5
