"""One latent."""
