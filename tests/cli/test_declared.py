"""What is read of a configuration without importing its module is what the module has."""

import pytest

from saelab.cli.declared import declared, declared_variants
from saelab.sae.variants import BUILT_IN, variants
from saelab.training.config import TrainConfig


def facts(cls):
    return {
        name: (field.annotation, field.default, field.description, field.metadata)
        for name, field in cls.model_fields.items()
    }


def test_training_is_declared_as_it_is():
    real = facts(TrainConfig)
    del real["sae"]
    found = declared("saelab.training.config", "TrainConfig", "sae")
    assert facts(found) == real
    assert list(found.model_fields) == list(real)
    assert found is not TrainConfig


def test_every_variant_is_declared():
    assert list(declared_variants()) == list(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_variant_is_declared_as_it_is(name):
    cls = variants()[name]
    assert declared_variants()[name].__name__ == cls.__name__
    found = declared(cls.__module__, cls.__name__)
    assert facts(found) == facts(cls)
    assert list(found.model_fields) == list(cls.model_fields)
    assert found.__doc__ == cls.__doc__
