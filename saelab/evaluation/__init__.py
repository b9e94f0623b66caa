"""From a trained SAE to numbers: reconstruction, downstream cost, ground-truth recovery."""
