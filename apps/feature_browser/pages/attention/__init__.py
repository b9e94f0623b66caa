"""The Attention page: how latents of attention heads get their values."""
