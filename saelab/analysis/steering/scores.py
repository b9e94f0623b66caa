"""Input and output score of every latent of a run (arXiv 2505.20063, section 3).

Input score: among the tokens on which a latent fires most, the share that its decoder row also
raises. Output score: how probable the tokens raised by the row become when the latent is added at
the last position of a neutral prompt. Steering needs latents with a high output score.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.steering.edits import features_of, with_maxima
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import (
    ScoreOptions,
    input_scores,
    neutral_prompt,
    output_scores,
    peak_tokens,
)
from saelab.analysis.steering.records import ARRAYS, SteeringScores, steering_path
from saelab.analysis.steering.steering_file import write_arrays
from saelab.config import UsageError
from saelab.host.host import Host
from saelab.lm.prompt import encode_prompt
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.provenance import provenance
from saelab.sae.decoder import atoms_of
from saelab.training.run import Run


@torch.no_grad()
def score_latents(
    run: Run,
    lm: LanguageModel,
    latents: Sequence[int] | None = None,
    options: ScoreOptions | None = None,
) -> SteeringScores:
    """Input and output scores of `latents` (default: all), without writing anything.

    It runs one forward pass of the neutral prompt per `batch_size` rows; signed codes have two rows
    per latent. Input scores come from features.h5.

    Raises:
        UsageError: features.h5 is missing or of other weights, `lm` is not the run's model, the
            site does not write to the residual stream, or the prompt has unknown words.
    """
    options = options or ScoreOptions()
    host, features = with_maxima(Host.of_run(run, lm)), features_of(run)
    prompt = options.prompt or neutral_prompt(lm)
    tokens = encode_prompt(lm, prompt)
    chosen = np.arange(host.sae.d_sae) if latents is None else np.asarray(latents, dtype=np.int64)
    poles = (1, -1) if "negative" in features.kinds else (1,)
    latent, sign = np.tile(chosen, len(poles)), np.repeat(poles, len(chosen))
    rows = torch.from_numpy(latent).to(lm.device)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < host.sae.d_sae:
        raise UsageError(f"Latents go from 0 to {host.sae.d_sae - 1}; got {latents}.")
    directions = atoms_of(host.sae, rows) * torch.from_numpy(sign).to(lm.device)[:, None]
    lens = lens_tokens(lm, host.writes, directions, options.n_lens)
    out = output_scores(host, tokens, (latent, sign), lens, options)
    found, n_examples = input_scores(features, (latent, sign), lens.cpu().numpy(), options)
    return SteeringScores(
        latent=latent,
        sign=sign,
        input=found,
        output=out.score,
        n_examples=n_examples,
        rank=out.rank,
        probability=out.probability,
        lens=lens.cpu().numpy(),
        peaks=peak_tokens(features, (latent, sign), options),
        vocabulary=tuple(features.token(i) for i in range(lm.info.d_vocab)),
        facts=_facts(run, options, prompt, tokens.tolist(), out.a_max),
    )


def steering_scores(
    run: Run, lm: LanguageModel, options: ScoreOptions | None = None
) -> SteeringScores:
    """The scores of all latents, written to the run's steering.h5; raises as `score_latents`."""
    with writing(run.path) as lock:
        scores = score_latents(run, lm, None, options)
        arrays = {name: getattr(scores, name) for name in ARRAYS}
        lock.check()
        write_arrays(steering_path(run.path), arrays, scores.vocabulary, scores.facts)
    return scores


def _facts(
    run: Run, options: ScoreOptions, prompt: str, tokens: list[int], a_max: float
) -> dict[str, Any]:
    features = FeatureFile(run.features_path)
    return {
        "hook": run.config.written_site,
        "variant": run.config.sae.variant,
        "model": run.provenance()["model"],
        "prompt": prompt,
        "prompt_tokens": tokens,
        "a_max": a_max,
        "options": options.model_dump(mode="json"),
        "config_digest": run.config.digest(),
        "sae_sha256": run.weights_sha256,
        "features_tokens": features.facts["n_tokens"],
        "provenance": provenance(),
    }
