"""Two runs, latent by latent."""
