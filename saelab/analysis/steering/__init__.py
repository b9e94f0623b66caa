"""Steering: what a latent does to what the model says, after arXiv 2505.20063.

interventions.py   a change of latents as a value
edits.py           the one splice: changes of latents, or a direction, as edits of a site
self_test.py       whether a change took effect
lens.py            which tokens a direction promises along the direct path
measures.py        input and output score as formulas
scores.py          both of every latent of a run; steering_file.py keeps them, records.py reads
writing.py         text as a model writes on, each token computed once
generate.py        steered text beside the plain model's
likelihood.py      how likely many texts are under the plain model, each read once
dose.py            effects over a range of strengths
success.py         the paper's measure of steering success
success_table.py   what filters by a score make of it, with intervals
chance.py          what random directions score
concepts.py        the grammar's concepts: what says them, and prompts for the opposite
concept_steering.py  latents against difference-in-means on them, at the same KL (budget.py)
"""
