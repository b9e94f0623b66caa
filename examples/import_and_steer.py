"""Somebody else's SAE: imported, measured on your text, and used to steer the model.

python examples/import_and_steer.py SAE_DIRECTORY MODEL TEXT SITE runs/theirs "Once upon a" 17
"""

import sys

import saelab


def main(sae, model, text, site, out, prompt, latent, n_tokens=200_000):
    lm = saelab.load_language_model(model)
    store = saelab.harvest(
        lm,
        [site],
        saelab.load_corpus(text, lm),
        out=f"{out}/activations",
        options=saelab.HarvestOptions(n_tokens=n_tokens),
    )
    theirs = saelab.load_foreign_sae(sae)
    run = saelab.adopt(theirs, activations=store.path, site=site, out=f"{out}/sae", origin=sae)
    found = saelab.evaluate(run, lm, n_tokens=min(n_tokens, 20_000))
    print(f"FVU {found.reconstruction['fvu']:.3f}; near 1, site or layer are probably wrong")
    host = saelab.Host.of_run(run, lm)
    for amount in (-1.0, 1.0, 4.0):
        change = saelab.Intervention(latents=(int(latent),), amount=amount, positions="all")
        told = saelab.steer(host, change, prompt, saelab.Sampling(n_tokens=12, n_samples=1))
        for name, texts in (("plain", told.plain), ("steered", told.steered)):
            print(f"{amount:>5} {name:>8}: {texts[0].text}")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
