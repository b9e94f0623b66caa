"""The Compare page: two runs, latent by latent."""
