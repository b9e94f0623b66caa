"""Latents of attention outputs: the heads and tokens behind them (arXiv 2406.17759).

Their SAEs read hook_z (the heads) or hook_attn_out (after W_O).

heads.py       which heads a latent belongs to, by its decoder's weights
dfa.py         which heads and source tokens make it fire: exact, with a constant left
recursive.py   what at a source token does that, back through the residual stream
components.py  what the stream is made of: latents, errors, MLPs, embeddings, biases
qk.py          why a head looks there: pairs of query and key components
loadings.py    which attention weights carry a target's value, each with its pairs
studies.py     heads through their latents: themes, induction by prefix, families
figures.py     pictures of these
"""
