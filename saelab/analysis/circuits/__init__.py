"""Circuits of a prompt: exact graphs of latents, and whether they hold in the live model.

active.py         an SAE's active latents, and products with their weights
frozen.py         a prompt's linear model: SAEs in, patterns and norm scales held
readings.py       what a walk starts from: a logit, latents' values
backward_walk.py  gradients and contributions in it, from targets down to leaves
targets.py        targets: a logit, a difference of logits, a latent's value
hierarchical.py   attribution over all paths, or over strong ones (arXiv 2405.13868)
nodes.py, graph_data.py  a graph's parts, read without torch
graph.py          the graph of direct effects, with a budget of nodes
influence.py      influence, pruning and scores as circuit-tracer has them
edits.py          the live model with some latents missing or scaled
ablation.py       faithfulness and completeness by ablation in the live model
intervene.py      logits with some latents taken away, kept alone or scaled
patching.py       attribution patching and integrated gradients: a second opinion
own.py            the graph's own latents, by influence
asked.py          what is to be explained, by name
live.py           a target in the live model, and the latents that gradients point to
explain.py        all of it for a prompt
graph_json.py, graph_file.py, circuit_tracer.py  files: JSON, compact HDF5, for other viewers
figures.py        the picture
"""
