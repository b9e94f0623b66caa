"""From a trained SAE to numbers: reconstruction, downstream cost, known features."""
