"""Everything that decides a training run, except where it runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from saelab.config import Config, Heading, UsageError
from saelab.sae.transcoder import check_transcoder
from saelab.sae.variants import SAEConfig

REFERENCE_WIDTH = 2**14
DEAD_AFTER = 10_000_000  # arXiv 2406.04093, appendix A.2
ADAM_EPS = 6.25e-10  # arXiv 2406.04093, appendix A.3
DECAY_FRACTION = 0.2
LEAST_EPS = 1e-30
"""Of float32's numbers, the square root of the least, about: below, moments of zero divide zero."""


class TrainConfig(Config):
    """One SAE trained on one site of one activation store, or a transcoder on two."""

    # In `saelab train --help` an option stands below the last Heading above it: "Data", "SAE",
    # "Optimisation" or "Run". A new field goes beside its like, or names its own Heading, and then
    # the field behind it names the one that was interrupted.
    sae: Annotated[SAEConfig, Heading("SAE")]
    """The variant and its options."""
    activations: Annotated[Path, Heading("Data")]
    """The activation store that `saelab harvest` wrote."""
    site: str
    """Which of the store's hooks to train on, e.g. blocks.2.hook_resid_post."""
    target_site: str | None = None
    """Train a transcoder: reconstruct this site of the same store from what is read at --site, e.g.
    blocks.2.hook_mlp_out from blocks.2.ln2.hook_out (arXiv 2406.11944); default: --site itself."""
    skip: Annotated[bool, Heading("SAE")] = False
    """Give a transcoder a linear skip connection from what it reads to what it reconstructs, so
    that latents need not model what is linear (arXiv 2501.18823)."""
    # 0: an SAE that another tool trained.
    n_tokens: Annotated[int, Heading("Optimisation")] = Field(ge=0)
    """Tokens to train on, rounded up to whole batches; more than the store has means epochs."""
    batch_size: int = Field(default=4096, gt=0)
    """Tokens per step."""
    objective: Literal["local", "e2e", "e2e-ds"] = "local"
    """What the reconstruction is judged by: its squared error (local); the KL divergence of the
    model's output when it runs on the reconstruction (e2e, arXiv 2405.12241); or that and the
    later layers' activations (e2e-ds). The last two run the model at every step."""
    kl_coefficient: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence in nats per token (paper: 1 for e2e, 0.5 for e2e-ds)."""
    downstream_coefficient: float = Field(default=1.0, ge=0)
    """Weight of the later layers' error for e2e-ds: the mean over them of error / variance."""
    downstream_sites: tuple[str, ...] = ()
    """Where e2e-ds compares; default: the residual stream after every later block."""
    live: Annotated[bool, Heading("Data")] = False
    """Take the activations from the running model, on the text that the store was harvested from
    (an endless text goes on where the store's ends), instead of from the store. n_tokens may then
    exceed the store by far; it still gives the scale, and the rows to calibrate on."""
    normalise: bool = True
    """Whether to train on activations scaled to unit variance per dimension, and scale the SAE back
    at the end; rates and sizes then mean the same at every site. The saved SAE reads raw ones. A
    transcoder's target has a scale of its own."""
    outliers: Literal["leave-out", "keep"] = "leave-out"
    """What to do with massive activations (arXiv 2402.17762), such as the sinks of attention: a few
    rows whose norms exceed 6 times the site's median and that hold much of its variance. leave-out:
    train on the others, and apply the SAE to no such activation; a site without any loses none."""
    first_position: int = Field(default=0, ge=0)
    """Train on no token at an earlier position of its context, and apply the SAE to none: sinks
    of attention stand at the first ones. BOS, at 0, has no row in a harvested store anyway."""
    precision: Annotated[Literal["float32", "bfloat16"], Heading("Run")] = "float32"
    """Number type of the large products; weights, sums and losses are float32 in any case."""
    ties: Literal["index", "float32"] = "index"
    """Which of the pre-activations that equal a row's k-th fire with --precision bfloat16, if not
    all may: those of lowest index (as other trainers, about), or those that were the largest
    before rounding (float32: the set that float32 products choose; a few per cent slower)."""
    step: Literal["auto", "fused", "autograd"] = "auto"
    """How a step is done. auto takes the fused one where it can (the TopK family and JumpReLU
    on CUDA, local objective): the same mathematics from kernels alone, several times as fast."""
    lr: Annotated[float | None, Heading("Optimisation")] = Field(default=None, gt=0)
    """Adam's peak learning rate; default: 2e-4 / sqrt(d_sae / 2^14)."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; default: 1000, or a twentieth of a shorter run."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """How the rate rises: linearly, or as half a wave (Gemma Scope, with a first fraction .1)."""
    initial_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """What the warm-up rises from, as a fraction of the peak."""
    schedule: Literal["wsd", "linear", "cosine", "constant"] = "wsd"
    """The rate after warm-up: wsd (warm-up, stable, decay) stays at the peak and falls linearly
    over the last steps; linear and cosine (arXiv 1608.03983) fall all the way; constant stays."""
    decay_fraction: float = Field(default=DECAY_FRACTION, ge=0, le=1)
    """Share of the steps, at the end, over which the rate of wsd falls."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """What the rate falls to, as a fraction of the peak."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; none: no clipping."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's memory of gradients: the share of the mean that a step keeps (Gemma Scope: 0)."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's memory of squared gradients."""
    adam_eps: float = Field(default=ADAM_EPS, ge=LEAST_EPS)
    """What Adam adds to the root of the squares (arXiv 2406.04093: 6.25e-10; Gemma Scope: 1e-8)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW, arXiv 1711.05101): each step takes lr times this share off the
    matrices; biases and thresholds keep theirs. Of a decoder of unit atoms it takes nothing, since
    they are renormalised after each step."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Average the weights over training, and save the SAE of the averages beside the run's own as a
    run, RUN/ema. Each step keeps this share of the average, e.g. 0.999 to look back about 1,000
    steps. Atoms are made unit again, codes scaled so that nothing else changes, and thresholds
    calibrated for it; default: no average."""
    dead_after: int | None = Field(default=None, gt=0)
    """Tokens without firing after which a latent counts as dead, and AuxK revives it; default: a
    tenth of n_tokens, at most 10 million (the paper's)."""
    init_from: Annotated[Path | None, Heading("SAE")] = None
    """A finished run to start from, in the place of random weights: to fine-tune its SAE, or to
    train on with another k, variant, site or model of the same widths. Adam starts afresh."""
    seed: Annotated[int, Heading("Run")] = 0
    """Decides the initial weights, the order of the rows, and every random choice on the way."""
    data_seed: int | None = None
    """Decides the order of the rows in the place of seed; SAEs of other seeds then see the same
    rows, and can be trained from one read of the store."""
    log_every: int = Field(default=50, gt=0)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=2_000, gt=0)
    """Steps between checkpoints, from which an interrupted run continues exactly; the last two are
    kept until it ends."""
    keep_at: tuple[int, ...] = ()
    """Tokens after which the SAE is kept as a run of its own, e.g. 1000000 5000000: RUN/kept/
    tokens_N, thresholds calibrated, which evaluate, features and browse read like any other."""
    keep_every: int | None = Field(default=None, gt=0)
    """Keep the SAE like that whenever so many tokens more are done, the last included."""
    keep_state: bool = True
    """Keep a finished run's last checkpoint (three times its weights), so that it goes on when the
    same command is given with a larger --n-tokens; otherwise it is removed."""

    def check(self) -> None:
        """Refuse options that do not fit each other.

        Raises:
            UsageError: the message names the options.
        """
        if not self.n_tokens:
            raise UsageError("n_tokens=0 trains nothing; give the tokens to train on.")
        self.sae.check()
        if self.live and (self.objective != "local" or self.sae.needs_gradient):
            raise UsageError(
                "--live trains with --objective local on activations alone: training end to end "
                "runs the model anyway, and gradient SAEs read stored gradients."
            )
        self._check_transcoder()
        self._check_optimizer()
        if outside := [n for n in self.keep_at if not 0 < n <= self.n_tokens]:
            raise UsageError(
                f"--keep-at {outside[0]} is no point of a training on {self.n_tokens} tokens; give "
                "numbers from 1 to --n-tokens."
            )
        problem = self.sae.end_to_end_problem
        if self.objective != "local" and problem:
            raise UsageError(
                f"--objective {self.objective} cannot train this {self.sae.variant} SAE: {problem}."
            )

    def _check_transcoder(self) -> None:
        if self.target_site is None:
            if self.skip:
                raise UsageError(
                    "--skip needs --target-site: past an SAE that reconstructs what it reads, a "
                    "skip connection would carry everything."
                )
            return
        if self.target_site == self.site:
            raise UsageError(
                f"--target-site {self.target_site} is what the SAE reads; leave it out, or name "
                "another site."
            )
        check_transcoder(self.sae)
        if self.live or self.objective != "local":
            given = "--live" if self.live else f"--objective {self.objective}"
            raise UsageError(
                f"{given} runs the model at one site; a transcoder trains with --objective local "
                "on a store that holds both sites."
            )

    def _check_optimizer(self) -> None:
        """Refuse a decay that is too large, and options that the schedule would not read."""
        if self.weight_decay * self.peak_lr >= 1:
            raise UsageError(
                f"weight_decay={self.weight_decay} at a peak rate of {self.peak_lr:g} takes all of "
                f"a weight in one step; keep it below {1 / self.peak_lr:g}."
            )
        if self.schedule != "wsd" and self.decay_fraction != DECAY_FRACTION:
            raise UsageError(
                f"decay_fraction={self.decay_fraction} is for --schedule wsd, and this is "
                f"{self.schedule}; leave it out."
            )
        if self.schedule == "constant" and self.final_lr_fraction:
            raise UsageError(
                f"final_lr_fraction={self.final_lr_fraction} is for a rate that falls, and that of "
                "--schedule constant stays; leave it out."
            )
        if self.schedule in ("linear", "cosine") and self.n_warmup >= self.n_steps:
            raise UsageError(
                f"warmup_steps={self.n_warmup} leaves none of the run's {self.n_steps} steps for "
                f"--schedule {self.schedule} to fall over; lower it."
            )

    def with_every_row(self) -> "TrainConfig":
        """The same training, massive activations included."""
        return self.model_copy(update={"outliers": "keep"})

    @property
    def written_site(self) -> str:
        """The site that is reconstructed: `target_site`, or `site`."""
        return self.target_site or self.site

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.n_tokens // self.batch_size)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return 2e-4 / (self.sae.d_sae / REFERENCE_WIDTH) ** 0.5 if self.lr is None else self.lr

    @property
    def n_warmup(self) -> int:
        """Steps of warm-up."""
        return min(1000, self.n_steps // 20) if self.warmup_steps is None else self.warmup_steps

    @property
    def n_decay(self) -> int:
        """Steps, at the end, over which the rate falls; 0 where it does not."""
        if self.schedule == "constant":
            return 0
        if self.schedule == "wsd":
            return round(self.decay_fraction * self.n_steps)
        return self.n_steps - self.n_warmup

    @property
    def silence(self) -> int:
        """Tokens without firing after which a latent counts as dead."""
        # No latent of a short run could be silent for as long as the paper's.
        return self.dead_after or max(1, min(DEAD_AFTER, self.n_tokens // 10))

    @property
    def order_seed(self) -> int:
        """The seed of the rows' order."""
        return self.seed if self.data_seed is None else self.data_seed
