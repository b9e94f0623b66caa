"""Transport: which features a later site just carries on from an earlier one (arXiv 2508.17540).

operators.py    affine maps between two sites, canonical correlations, the bound of any map
moments.py      sums of products of two sites' rows, from which all maps follow
ranked.py       maps of every rank at once, exact: reduced-rank ridge, and the paper's cut
fit.py          the ridge chosen and every rank measured on documents that the fit did not see
rows.py         the rows of a store, and which documents are kept together
firing.py       R² of each latent on the tokens where it fires, beside its baselines
splice.py       whether the model runs on what was transported
measure.py      all of it for pairs of sites; transport_file.py keeps it, records.py reads
"""
