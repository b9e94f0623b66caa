"""What a hub gets of a run: a folder with its SAE for saelab and SAELens, and a model card."""
