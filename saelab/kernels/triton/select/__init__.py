"""Which latents a token keeps."""
