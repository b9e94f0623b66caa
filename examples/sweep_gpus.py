"""A transcoder of every MLP and an SAE of every layer's heads, on all GPUs of this machine.

python examples/sweep_gpus.py MODEL TEXT runs/sweep
"""

import json
import subprocess
import sys
from pathlib import Path

import torch


def main(model, text, out, n_tokens=100_000_000, d_sae=24_576, k=32, batch_size=4096):
    sites = {"site": "blocks.*.mlp.hook_in", "target_site": "blocks.*.hook_mlp_out"}
    sweep = {
        "harvest": {"model": model, "text": text, "n_tokens": max(1000, n_tokens // 1000)},
        "base": {
            "n_tokens": n_tokens,
            "batch_size": batch_size,
            "sae": {"variant": "batch-topk", "d_sae": d_sae, "k": k},
        },
        "runs": {"mlp": sites, "attention": {"site": "blocks.*.attn.hook_z"}},
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    file = Path(out) / "sweep.json"
    file.write_text(json.dumps(sweep, indent=1))
    n = torch.cuda.device_count()
    alone = [sys.executable, "-m"]
    shared = [*alone, "torch.distributed.run", f"--nproc-per-node={n}", "-m"]
    # One forward pass feeds all SAEs; each process runs the model on a share of the text.
    verb = ["saelab.cli", "train", "sweep", str(file), "--live", "--out", f"{out}/runs"]
    return subprocess.run([*(shared if n > 1 else alone), *verb], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
