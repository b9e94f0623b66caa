"""File formats of runs: whole or absent when written, sealed, and untrusted when read.

Nothing here calls code of a file, and a file is given no more memory than its own size explains.
"""
