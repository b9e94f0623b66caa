"""The page of all latents of a run."""
