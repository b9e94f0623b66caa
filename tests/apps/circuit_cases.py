"""A small graph with known numbers, of two runs that lie beside each other."""

from pathlib import Path

import numpy as np

TOKENS = ("<bos>", "<img src=x onerror=alert(1)>", "\u202eevil", "a|b", "to")
NAME = "b-to-her"
POSITION = len(TOKENS) - 1


def write_circuit(run: Path, name: str = NAME, **facts: object) -> Path:
    """A graph under the run: its own latents 5 and 6 of `heads`, latent 7 of `plain`, leaves.

    What gives what, over all paths, of the target's 10: embedding @1 6, error 1, bias 2, mlp 1.
    """
    from saelab.analysis.circuits.graph_data import AttributionGraph
    from saelab.analysis.circuits.graph_file import save_graph_hdf5
    from saelab.analysis.circuits.nodes import Node

    leaves = [Node("embedding", "embedding", -1, p) for p in range(len(TOKENS))]
    leaves += [
        Node("mlp", "mlp 0", 0, POSITION),
        Node("bias", "b_V 0", 0),
        Node("error", "heads", 1, POSITION),
    ]
    latents = [
        Node("latent", "heads", 1, POSITION, 5, 4.0),
        Node("latent", "heads", 1, 3, 6, 2.0),
        Node("latent", "plain", 3, POSITION, 7, 6.0),
    ]
    nodes = (*leaves, *latents, Node("target", "logit 'her' - mean logit", 4, POSITION, None, 10.0))
    number = {
        "token": 1, "mlp": 5, "bias": 6, "error": 7, "five": 8, "six": 9, "seven": 10, "target": 11,
    }  # fmt: skip
    edges = [
        ("token", "five", 5.0), ("bias", "five", -1.0), ("token", "six", 2.0),
        ("five", "seven", 4.0), ("six", "seven", 2.0),
        ("seven", "target", 6.0), ("mlp", "target", 1.0), ("bias", "target", 3.0),
        ("error", "target", 1.0), ("five", "target", -1.0),
    ]  # fmt: skip
    source = np.array([number[a] for a, _, _ in edges])
    target = np.array([number[b] for _, b, _ in edges])
    known = {
        "saes": {
            "heads": {"layer": 1, "kind": "heads", "depth": 4},
            "plain": {"layer": 3, "kind": "residual", "depth": 9},
        },
        "target": "logit '<her>' - mean logit",
        "value": 10.0,
        "position": POSITION,
        "prompt": "a prompt",
        "probability": 0.5,
        "scores": {"error_influence": 0.25, "mlp_influence": 0.125},
        "faithfulness": {"faithfulness": 0.875, "completeness": 0.0625, "n_members": 3},
    }
    weights = np.array([w for _, _, w in edges])
    graph = AttributionGraph(nodes, source, target, weights, TOKENS, {}, known | facts)
    path = run / "circuits" / f"{name}.h5"
    save_graph_hdf5(graph, path)
    return path
