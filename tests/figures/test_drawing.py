"""`saelab.figure` draws what has a figure, by the type of what it is given."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch

import saelab
from saelab.analysis.attention.heads import HeadAttribution
from saelab.analysis.attention.studies import LatentFamily
from saelab.config import UsageError
from saelab.drawing import FIGURES, figure
from saelab.figures.attention import families_figure, heads_figure
from saelab.figures.style import LIGHT


@pytest.mark.parametrize("name", FIGURES)
def test_every_type_and_its_figure_exist(name):
    module, _, kind = name.rpartition(".")
    assert isinstance(getattr(import_module(module), kind), type)
    file, _, function = FIGURES[name].partition(".")
    assert callable(getattr(import_module(f"saelab.figures.{file}"), function))


def test_data_is_drawn_by_its_method_as_by_the_function_with_all_options():
    heads = HeadAttribution(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert saelab.figure is figure
    drawn = heads_figure(heads, 1, LIGHT)
    assert figure(heads, 1, palette=LIGHT) == drawn
    assert heads.figure(1, palette=LIGHT) == drawn


def test_a_dict_of_lists_is_drawn_by_what_it_holds():
    family = LatentFamily(latent=0, n_fired=9, local=0.8, induction=0.0, distant=0.2)
    found = {"layer 0": [family]}
    assert figure(found) == families_figure(found)


@pytest.mark.parametrize(("value", "named"), [(3, "builtins.int"), ([], "list"), ([{}], "dict")])
def test_what_has_no_figure_is_refused_by_its_type(value, named):
    with pytest.raises(UsageError, match=rf"Nothing draws .*{named}; there are figures of Run"):
        figure(value)


def test_reading_and_drawing_need_no_torch_and_data_no_plotly():
    code = """
import json, sys
import saelab.analysis.records, saelab.analysis.steering.records
import saelab.analysis.transport.records
without_plotly = "plotly" not in sys.modules
names = "latent training evaluation steering attention circuits bench transport"
for name in names.split():
    __import__(f"saelab.figures.{name}")
print(json.dumps([without_plotly, "torch" not in sys.modules]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [True, True]
