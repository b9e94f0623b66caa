"""A run's SAE in its language model, for pages that compute on demand."""
