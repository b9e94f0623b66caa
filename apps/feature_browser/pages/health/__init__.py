"""What a run's latents are like as a whole."""
