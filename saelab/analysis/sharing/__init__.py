"""What the latents of a crosscoder share: which sites or models each of them is of.

records.py   the measured figures, and the file that keeps them; needs no torch
measure.py   measures them on rows held back from training
"""
