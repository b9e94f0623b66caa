"""A run as files that a browser opens from a disk: `saelab publish` writes them."""
