"""Which latents an earlier site carries, and which are computed between."""
