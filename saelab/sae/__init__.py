"""Sparse autoencoders: one file per variant, loadable with torch and safetensors alone."""
