"""From activations to a trained SAE: configuration, loop, checkpoints, runs."""
