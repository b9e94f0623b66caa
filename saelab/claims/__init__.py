"""The papers' claims, each measured again at small scale: what `saelab claims` runs.

A claim is one file here and one line of `BUILT_IN` in `saelab/claims/claim.py`. The file has a
function that measures, and a `Claim`; `saelab/claims/abs_topk.py` is a whole example:

    def _measure(setting: Setting) -> Outcome:
        subject = setting.subject
        site = subject.sites.residual
        saes = setting.trained(subject.fitted(my_recipe(subject.store(), site)))
        x = subject.held_out(site).x[site]
        error = {name: fvus(each, x) for name, each in saes.items()}
        ratio = over_seeds(ratios(error["mine"], error["topk"]))
        return Outcome(
            figures={"FVU, mine / TopK": ratio},
            holds={"a lower error at equal L0": ratio.below(1)},
        )

    MINE = Claim(
        "mine-error",
        "2510.00000",
        "Mine has a lower error than TopK at equal L0.",
        "FVU 0.21 against 0.25 (GPT-2, layer 8, L0 32)",
        "tiny, blocks.2.hook_resid_post",
        _measure,
        with_model=True,
    )

- `setting.trained(recipe)` and `setting.runs(recipe)` train each configuration of a recipe
  (`saelab/training/recipes.py`) with seeds 0 to n - 1 in the claim's directory, where an
  interrupted claim goes on. Anything else that a claim writes goes below `setting.directory`.
- Rows are planted (`saelab.testing.planted`, `setting.planted(x)`), with atoms drawn from a seed
  that no training has: an SAE starts at random directions, which would be the atoms. Or rows are
  of `setting.subject`: the tiny model, or that of `--model`. `subject.store(*sites)` harvests
  150,000 tokens once for all claims; `subject.held_out(*sites)` has rows of text that no store has,
  with labels, and what splicing costs; `subject.sites` names sites; `subject.fitted(recipe)` makes
  a recipe fit a wider model. A claim that uses only these says `with_model=True`.
- `figures` are `Estimate`s: `over_seeds(values)` has Student's t interval over the seeds. For
  another interval (a bootstrap over latents) make an `Estimate`. The first figure stands in the
  table, so it is the comparison that the claim makes.
- `holds` has the parts of the paper's claim, and whether they hold: all do (reproduced), some do
  (in part), none does (not reproduced). `below` and `above` ask the whole interval; with one seed,
  which has none, they ask the value. `reason` says why a part does not hold.
- A claim that steers or ablates says `intervenes=True`. Its outcome then has `controls` named
  `RANDOM_DIRECTIONS` and `RANDOM_LATENTS`, of equal number, in the unit of the first figure.
- A claim takes at most two minutes on 2 cores with 3 seeds, runs on `setting.device`, and raises
  what goes wrong: `saelab claims` tells it and continues with the next claim.
- A test in `tests/claims/` measures it with the fixture `setting`, which has one seed, and says
  what holds. `saelab claims --only NAME` measures it; `make claims` writes the table
  of docs/claims.md.
"""
