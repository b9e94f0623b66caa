"""The tiny model with its stores and held-out texts, made once for all claims."""

import pytest


@pytest.fixture(scope="session")
def subject(tmp_path_factory, tiny_lm):
    """The tiny model; its stores and held-out texts are made once for all claims."""
    from saelab.claims.subject import Subject

    subject = Subject(tmp_path_factory.mktemp("subject"), device="cpu")
    subject.lm = tiny_lm
    return subject


@pytest.fixture
def setting(subject, tmp_path):
    """One seed, in a directory of its own. `saelab claims` measures with more."""
    from saelab.claims.setting import Setting

    return Setting(tmp_path, subject, n_seeds=1)
