"""Tasks of which papers report figures, on labelled texts of your choice.

What each measures, and what misleads, is said in its module: `sparse_probing` (sparse probing),
`tpp`, `scr`, `letters` (first-letter absorption), `ravel`, `unlearning`. `saelab tasks` measures
them.
"""
