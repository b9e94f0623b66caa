"""Explanations of latents by language models, and scores that say how far to trust them.

`evidence` divides a latent's examples into those that the explainer sees and those that only the
judge sees; `prompts` writes questions of them; `records` reads and writes what a run keeps;
`explain` and `scoring` have clients (`saelab.clients`) answer.
"""
