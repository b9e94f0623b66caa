"""File formats of runs: written whole or not at all, sealed, and untrusted when read.

No code in a file is run, and no file gets more memory than its own size explains.
"""
