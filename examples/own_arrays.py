"""An SAE of your own activations, from any source: rows of numbers in a .npy file.

python examples/own_arrays.py rows.npy runs/mine
"""

import sys

import numpy as np
import torch

import saelab


def main(file, out, n_tokens=2_000_000, d_sae=4096, k=16):
    rows = np.load(file, mmap_mode="r")  # [n, d]; a file larger than the memory is read in parts.
    store = saelab.write_arrays(f"{out}/store", {"mine": rows})
    config = saelab.TrainConfig(
        sae=saelab.BatchTopKConfig(d_sae=d_sae, k=k),
        activations=store,
        site="mine",
        n_tokens=n_tokens,
        batch_size=min(4096, len(rows) // 2),
    )
    run = saelab.train(config, out=f"{out}/sae")
    # One row in twenty is held back from training; no language model is needed.
    found = saelab.evaluate(run)
    print(f"FVU {found.reconstruction['fvu']:.3f}, L0 {found.reconstruction['l0']:.1f}")
    codes = run.load_sae().encode(torch.from_numpy(np.array(rows[:3], dtype=np.float32)))
    for row in codes.dense():
        latents = row.nonzero()[:, 0].tolist()
        print({latent: round(float(row[latent]), 3) for latent in latents})
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
