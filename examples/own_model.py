"""An SAE of a language model of your own: from a checkpoint and a text to what its latents mean.

python examples/own_model.py CHECKPOINT TEXT blocks.6.hook_resid_post runs/mine
"""

import sys

import saelab


def main(model, text, site, out, n_tokens=2_000_000, d_sae=8192, k=32):
    lm = saelab.load_language_model(model)
    store = saelab.harvest(
        lm,
        [site],
        saelab.load_corpus(text, lm),
        out=f"{out}/activations",
        options=saelab.HarvestOptions(n_tokens=n_tokens),
    )
    config = saelab.TrainConfig(
        sae=saelab.TopKConfig(d_sae=d_sae, k=k),
        activations=store.path,
        site=site,
        n_tokens=5 * n_tokens,
    )
    run = saelab.train(config, out=f"{out}/sae")
    figures = saelab.evaluate(run, lm).reconstruction
    print(f"FVU {figures['fvu']:.3f}, L0 {figures['l0']:.1f}")
    features = saelab.collect_features(run, lm, saelab.FeatureOptions(n_tokens=n_tokens))
    often = features.table()["density"].argsort()[::-1]
    for latent in often[len(often) // 4 :][:10].tolist():
        print(latent, features.fires_on(latent))
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
