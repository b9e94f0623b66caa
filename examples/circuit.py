"""Which latents make a prediction: an attribution graph, tested in the live model, and a picture.

python examples/circuit.py "anna met john in the park . john gave a book to" circuit.html \
    runs/demo/topk-residual runs/demo/topk-attention
"""

import sys

import saelab


def main(prompt, picture, *paths):
    runs = [saelab.Run(path) for path in paths]
    lm = saelab.load_language_model(runs[0].model()["name"])
    found = saelab.explain_runs(lm, runs, prompt)
    target = found.graph.facts["target"]
    live = found.faithfulness
    if why := live.caveat or found.caveat:
        print(f"{target}: {why}")
    else:
        print(f"{target}: the graph's latents have faithfulness {live.faithfulness:.2f}")
        print(f"as many at random: {[round(each.faithfulness, 2) for each in found.by_chance]}")
    given = found.graph.attributions()
    strongest = sorted(range(len(given)), key=lambda n: -abs(given[n]))
    for number in [n for n in strongest if found.graph.nodes[n].kind == "latent"][:10]:
        node = found.graph.nodes[number]
        print(f"{given[number]:+.3f}  {node.name} {node.latent} at position {node.position}")
    saelab.figure(found.pruned).write_html(picture)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
