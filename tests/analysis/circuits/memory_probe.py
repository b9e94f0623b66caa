"""A circuit of a prompt with few latents active, then of the same prompt with ten times as many.

    python memory_probe.py DIRECTORY

Prints as JSON the active latents and the peak resident MB of the process so far: before, after the
first graph and after the second.
"""

import json
import resource
import sys

import torch
from analysis.circuits.cases import save_random

from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.circuits.graph import GraphOptions, attribution_graph
from saelab.analysis.circuits.influence import prune
from saelab.analysis.circuits.targets import logit_target
from saelab.host.host import Host
from saelab.lm.load import load_language_model
from saelab.sae.topk import TopKConfig

D_SAE, FEW, MANY = 8192, 80, 800
N_TOKENS, MAX_NODES = 31, 200


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def counts_of(lm, k):
    """What is counted in a graph over the heads and the stream of every layer."""
    sites = [f"blocks.{i}.{part}" for i in range(3) for part in ("attn.hook_z", "hook_resid_post")]
    saes = []
    for seed, site in enumerate(sites):
        sae = TopKConfig(d_sae=D_SAE, k=k).build(16, torch.Generator().manual_seed(seed))
        saes.append(Host.at(lm, sae.eval().requires_grad_(requires_grad=False), site))
    tokens = torch.arange(N_TOKENS) % lm.info.d_vocab
    frozen = freeze(lm, saes, tokens)
    words = tuple(map(str, tokens.tolist()))
    graph = attribution_graph(
        frozen, logit_target(frozen, 3, 5), words, GraphOptions(max_nodes=MAX_NODES)
    )
    return prune(graph).counts


def run(directory):
    lm = load_language_model(save_random(directory, "gpt2"), device="cpu", dtype=torch.float64)
    counts_of(lm, 2)
    found = {"peaks": [peak_mb()], "counts": []}
    for k in (FEW, MANY):
        found["counts"].append(counts_of(lm, k))
        found["peaks"].append(peak_mb())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run(sys.argv[1])))
