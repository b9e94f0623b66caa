"""Objects that stand in for a language model."""

from saelab.lm.protocol import LanguageModel


def answer_as(stand_in, lm):
    """Give it what a language model has and it has not, from `lm`.

    Since Python 3.12 a protocol's check sees no `__getattr__`, so attributes are set.
    """
    for name in dir(LanguageModel):
        if not name.startswith("_") and not hasattr(type(stand_in), name):
            setattr(stand_in, name, getattr(lm, name))
