"""Language models: loading, hook sites, reading and replacing activations."""
