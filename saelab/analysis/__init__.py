"""From a trained SAE to what its latents mean: evidence, records, figures."""
