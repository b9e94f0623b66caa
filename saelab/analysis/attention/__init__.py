"""Latents of attention outputs (hook_z): the heads and tokens behind them (arXiv 2406.17759).

heads.py       which heads a latent belongs to, by its decoder's weights
dfa.py         which heads and source tokens make it fire: exact, with a constant left
recursive.py   what at a source token does that, back through the residual stream
components.py  what the stream is made of: latents, errors, MLPs, embeddings, biases
qk.py          why a head looks there: pairs of query and key components
studies.py     heads through their latents: themes, induction by prefix, families
figures.py     pictures of these
"""
