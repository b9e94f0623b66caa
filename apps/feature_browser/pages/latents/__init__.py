"""All latents of a run."""
