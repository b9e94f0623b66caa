"""SAEs that other tools wrote: `detect.read_foreign` reads any of them, one module each."""
