"""The latents of each token, against the F1 of every latent as a detector of it."""

import numpy as np
import pytest
from analysis.features.cases import D_VOCAB, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.analysis.features import token_index
from saelab.analysis.features.token_index import TokenIndex


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 4),
    cut=st.integers(1, 5),
    merged=st.sampled_from([1, 30, 2**20]),
)
def test_every_token_has_its_best_detectors(tmp_path_factory, seed, n, cut, merged):
    case = random_case(tmp_path_factory.mktemp("codes"), seed)
    row_token = case.tokens[case.mask]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_index, "N_LATENTS", n)
        patch.setattr(token_index, "MERGED", merged)
        index = TokenIndex(row_token, D_VOCAB)
        for latents in ((0, cut), (cut, 6)):
            index.add(index.postings(case.codes.firings(*latents)))
        arrays = index.arrays()
    size = np.abs(case.rows)
    for token in range(D_VOCAB):
        here = row_token == token
        both = (size[here] != 0).sum(axis=0)
        f1 = 2 * both / np.maximum(1, here.sum() + (size != 0).sum(axis=0))
        part = slice(*arrays["index/start"][token : token + 2])
        found = arrays["index/latents"][part]
        assert len(found) == min(n, (both > 0).sum())
        assert np.allclose(f1[found], np.sort(f1)[::-1][: len(found)])
        assert np.allclose(arrays["index/f1"][part], f1[found], rtol=1e-3)
        assert arrays["index/n"][part].tolist() == both[found].tolist()
        mean = size[here][:, found].sum(axis=0) / both[found]
        assert np.allclose(arrays["index/mean"][part], mean)
