"""Files of other SAE tools, one module per tool; `detect.read_foreign` reads any of them."""
