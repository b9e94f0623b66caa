"""How latents of attention heads come about."""
