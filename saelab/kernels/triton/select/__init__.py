"""Selection: which latents a token keeps."""
