"""The Latent page: one latent."""
