"""Everything that decides a training run, except where it runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from saelab.activations import POOL_ROWS
from saelab.config import Config, Heading, UsageError
from saelab.sae.base import AbstractSAEConfig
from saelab.sae.variants import SAEConfig
from saelab.sites import parts_of
from saelab.training.sites_asked import check_sites

REFERENCE_WIDTH = 2**14
DEAD_AFTER = 10_000_000  # arXiv 2406.04093, appendix A.2
ADAM_EPS = 6.25e-10  # arXiv 2406.04093, appendix A.3
DECAY_FRACTION = 0.2
BY_GRADIENT = (
    *("objective", "precision", "ties", "step", "lr", "warmup_steps", "warmup_shape"),
    *("initial_lr_fraction", "schedule", "decay_fraction", "final_lr_fraction", "clip_norm"),
    *("adam_beta1", "adam_beta2", "adam_eps", "weight_decay", "moments"),
)
"""Options that only an SAE which a gradient fits has a use for."""
LEAST_EPS = 1e-30
"""About the square root of float32's least number: with a smaller eps, moments of zero divide zero
by zero."""


class TrainConfig(Config):
    """One SAE trained on one site of one activation store, or a transcoder on two."""

    # `saelab train --help` lists an option below the last Heading before it: "Data", "SAE",
    # "Optimisation" or "Run". Put a new field beside related ones. If it has a Heading of its own,
    # the field after it must name the previous Heading again.
    sae: Annotated[SAEConfig, Heading("SAE")]
    """The variant and its options."""
    activations: Annotated[Path, Heading("Data")]
    """The activation store that `saelab harvest` wrote."""
    site: str
    """The hook to train on, one of the store's sites, e.g. blocks.2.hook_resid_post; for a
    crosscoder several, joined by +."""
    beside: tuple[Path, ...] = ()
    """Further stores of the same tokens, of other models: a crosscoder then reads --site in all of
    them, and tells what the models share (model diffing)."""
    target_site: str | None = None
    """Train a transcoder: read --site and reconstruct this site of the same store, e.g.
    blocks.2.hook_mlp_out from blocks.2.ln2.hook_out (arXiv 2406.11944); default: --site itself."""
    skip: Annotated[bool, Heading("SAE")] = False
    """Give a transcoder a linear skip connection from its input to its output, so that latents need
    not model the linear part (arXiv 2501.18823)."""
    # 0 for an SAE that another tool trained.
    n_tokens: Annotated[int, Heading("Optimisation")] = Field(ge=0)
    """Tokens to train on, rounded up to whole batches. More tokens than the store has are read in
    several epochs."""
    batch_size: int = Field(default=4096, gt=0)
    """Tokens per step."""
    objective: Literal["local", "masked", "e2e", "e2e-ds"] = "local"
    """What the loss measures: the squared error of the reconstruction (local); the squared error at
    numbers that are hidden from the encoder (masked, arXiv 2302.12715), which noise cannot lower;
    the KL divergence of the model's output when it runs on the reconstruction (e2e, arXiv
    2405.12241); or the KL divergence and the error at later layers (e2e-ds). e2e and e2e-ds run the
    model at every step."""
    hidden_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the numbers that masked hides, anew in every step; at least one, never all."""
    hide: Literal["dimensions", "entries"] = "dimensions"
    """What masked hides: the same dimensions of all rows of a batch, or entries row by row."""
    kl_coefficient: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence in nats per token (paper: 1 for e2e, 0.5 for e2e-ds)."""
    downstream_coefficient: float = Field(default=1.0, ge=0)
    """Weight of the later layers' error for e2e-ds, which is error / variance, averaged over
    layers."""
    downstream_sites: tuple[str, ...] = ()
    """The sites that e2e-ds compares; default: the residual stream after every later block."""
    live: Annotated[bool, Heading("Data")] = False
    """Take activations from the running model, on the store's text; an endless text continues where
    the store ends. n_tokens may exceed the store by far, which gives scale and calibration rows."""
    buffer_rows: int = Field(default=POOL_ROWS, gt=0)
    """With --live: rows shuffled together; provenance.json has their design effect."""
    normalise: bool = True
    """Whether to train on activations scaled to unit variance per dimension, so that --lr and
    coefficients mean the same at every site. The saved SAE is scaled back and reads raw
    activations. A transcoder's target has a scale of its own."""
    outliers: Literal["leave-out", "keep"] = "leave-out"
    """What to do with massive activations (arXiv 2402.17762), such as attention sinks: a few rows
    whose norms exceed 6 times the site's median and that hold much of its variance. leave-out:
    train on the other rows only, and never apply the SAE to massive activations. A site that has
    none loses no row."""
    first_position: int = Field(default=0, ge=0)
    """Leave out tokens at earlier positions of their context, in training and wherever the SAE is
    applied: attention sinks are at the first positions. A harvested store never has a row for BOS,
    at position 0."""
    precision: Annotated[Literal["float32", "bfloat16"], Heading("Run")] = "float32"
    """Dtype of the large products; weights, sums and losses are always float32."""
    ties: Literal["index", "float32"] = "index"
    """How ties at a row's k-th pre-activation are broken with --precision bfloat16: by lowest index
    (about as other trainers do), or by the values before rounding (float32: the latents that
    float32 products choose; a few per cent slower)."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which the fused step keeps Adam's moments of both matrices. bfloat16 rounds them up
    or down at random, right on average: 4 bytes a weight less memory, and 8 less that a step reads
    and writes."""
    step: Literal["auto", "fused", "autograd"] = "auto"
    """How a step is done. auto takes the fused step where there is one (the TopK family, JumpReLU,
    k-sparse and matching pursuit on CUDA, transcoders too, local objective): the same mathematics
    by kernels alone, several times as fast."""
    lr: Annotated[float | None, Heading("Optimisation")] = Field(default=None, gt=0)
    """Adam's peak learning rate; default: 2e-4 / sqrt(d_sae / 2^14)."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; default: 1000, or a twentieth of a shorter run."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the rise: linear, or half a cosine wave (Gemma Scope, with an initial fraction of
    0.1)."""
    initial_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the start of the warm-up, as a fraction of the peak."""
    schedule: Literal["wsd", "linear", "cosine", "constant"] = "wsd"
    """Learning rate after the warm-up: wsd (warm-up, stable, decay) stays at the peak and falls
    linearly over the last steps; linear and cosine (arXiv 1608.03983) fall all the way; constant
    stays."""
    decay_fraction: float = Field(default=DECAY_FRACTION, ge=0, le=1)
    """Share of the steps, at the end of the run, over which wsd falls."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Learning rate after the last step, as a fraction of the peak."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; none: no clipping."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the gradients' mean per step (Gemma Scope: 0)."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the squared gradients' mean per step."""
    adam_eps: float = Field(default=ADAM_EPS, ge=LEAST_EPS)
    """Added to the root of Adam's squared gradients (arXiv 2406.04093: 6.25e-10; Gemma Scope:
    1e-8)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW, arXiv 1711.05101): each step reduces the matrices by lr times
    this share. Biases and thresholds do not decay. Unit atoms lose nothing, since they are
    renormalised after each step."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an average of the weights, e.g. 0.999 for about the last 1,000 steps. The
    averaged SAE is saved as a run of its own, RUN/ema: its atoms are made unit, its codes scaled to
    match, and its thresholds calibrated; default: no average."""
    dead_after: int | None = Field(default=None, gt=0)
    """Tokens without firing after which a latent counts as dead and AuxK revives it; default: a
    tenth of n_tokens, at most 10 million (the paper's value)."""
    init_from: Annotated[Path | None, Heading("SAE")] = None
    """A finished run whose SAE is the start, instead of random weights: for fine-tuning, or for
    training with another k, variant, site or model of the same widths. Adam starts afresh."""
    seed: Annotated[int, Heading("Run")] = 0
    """Decides the initial weights, the order of the rows, and every other random choice."""
    data_seed: int | None = None
    """Decides the order of the rows instead of seed. SAEs with different seeds then see the same
    rows, and one read of the store trains them all."""
    log_every: int = Field(default=50, gt=0)
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=2_000, gt=0)
    """Steps between two checkpoints, from which an interrupted run continues exactly. The last two
    checkpoints are kept until the run ends."""
    keep_at: tuple[int, ...] = ()
    """Keep the SAE after these numbers of tokens, e.g. 1000000 5000000, as runs of their own:
    RUN/kept/tokens_N, with calibrated thresholds. evaluate, features and browse read them like any
    other run."""
    keep_every: int | None = Field(default=None, gt=0)
    """Keep the SAE like --keep-at after every so many tokens, the last included."""
    keep_state: bool = True
    """Keep a finished run's last checkpoint (three times its weights), so that the same command
    with a larger --n-tokens continues the run; otherwise the checkpoint is removed."""

    def check(self) -> None:
        """Refuse options that do not fit each other.

        Raises:
            UsageError: the message names the options.
        """
        if not self.n_tokens:
            raise UsageError("n_tokens=0 trains nothing; give the tokens to train on.")
        self.sae.check()
        self._check_fitted_by()
        self.sae.check_batch(self.batch_size)
        if self.live and (self.runs_model or self.sae.needs_gradient):
            raise UsageError(
                "--live trains with --objective local or masked on activations alone: training end "
                "to end runs the model anyway, and gradient SAEs read stored gradients."
            )
        if not self.live and self.buffer_rows != POOL_ROWS:
            raise UsageError(f"buffer_rows={self.buffer_rows} needs --live; give both or neither.")
        check_sites(self)
        self._check_optimizer()
        if outside := [n for n in self.keep_at if not 0 < n <= self.n_tokens]:
            raise UsageError(
                f"--keep-at {outside[0]} is no point of a training on {self.n_tokens} tokens; give "
                "numbers from 1 to --n-tokens."
            )
        problem = self.sae.end_to_end_problem if self.runs_model else None
        if self.objective == "masked" and (several := self.sae.several_reconstructions):
            problem = f"{several}, and what is hidden is compared with one"
        if self.objective != "local":
            problem = self.sae.decoder_problem or problem
        if problem:
            raise UsageError(
                f"--objective {self.objective} cannot train this {self.sae.variant} SAE: {problem}."
            )

    def _check_fitted_by(self) -> None:
        """Refuse options of training by gradient where no gradient fits the SAE."""
        if (how := self.sae.fitted_by) is None:
            return
        for name in BY_GRADIENT:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise UsageError(
                    f"{name}={value} is for training by gradient, and a {self.sae.variant} SAE is "
                    f"fitted by {how}; leave it out."
                )

    def _check_optimizer(self) -> None:
        """Refuse a decay that is too long, and options that the schedule does not use."""
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

    def of(self, sae: AbstractSAEConfig) -> "TrainConfig":
        """The same training of another SAE, without options that this one has no use for."""
        unused = () if sae.fitted_by is None else BY_GRADIENT
        changes = {name: type(self).model_fields[name].default for name in unused}
        return self.model_copy(update={**changes, "sae": sae})

    def of_rows(self, replicas: int) -> "TrainConfig":
        """The same steps on a part of each batch's rows."""
        size = self.batch_size // replicas
        return self.model_copy(update={"batch_size": size, "n_tokens": self.n_steps * size})

    def with_every_row(self) -> "TrainConfig":
        """The same training, massive activations included."""
        return self.model_copy(update={"outliers": "keep"})

    @property
    def runs_model(self) -> bool:
        """Whether the loss runs the language model on the reconstruction at every step."""
        return self.objective in ("e2e", "e2e-ds")

    @property
    def written_site(self) -> str:
        """The site that is reconstructed: `target_site` if given, else `site`."""
        return self.target_site or self.site

    @property
    def n_sites(self) -> int:
        """Number of sites that are read side by side, over all stores."""
        return len(parts_of(self.site)) * (1 + len(self.beside))

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
        """Steps at the end over which the rate falls; 0 if it does not fall."""
        if self.schedule == "constant":
            return 0
        if self.schedule == "wsd":
            return round(self.decay_fraction * self.n_steps)
        return self.n_steps - self.n_warmup

    @property
    def silence(self) -> int:
        """Tokens without firing after which a latent counts as dead."""
        # In a short run no latent could be silent for as long as in the paper.
        return self.dead_after or max(1, min(DEAD_AFTER, self.n_tokens // 10))

    @property
    def order_seed(self) -> int:
        """The seed of the rows' order."""
        return self.seed if self.data_seed is None else self.data_seed
