"""The Health page: a run's latents as a whole."""
