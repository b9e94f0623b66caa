"""An SAE in a model, and SAEs in the order in which the model computes what they read."""

from collections.abc import Sequence
from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.host.host import check_model
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sites import Place, Site, place_of
from saelab.training.domain import EVERYWHERE, Domain
from saelab.training.run import Run
from saelab.types import SparseCodes


@dataclass(frozen=True)
class Dictionary:
    """An SAE in a model: what it reads, and what its reconstruction stands for.

    Attributes:
        sae: reads rows at `site`, reconstructs rows at `target_site`.
        target_site: equals `site` unless the SAE is a transcoder.
        name: what graphs call it.
        domain: where it is applied; elsewhere its error is the whole activation, and no latent
            fires. Default: everywhere.
    """

    sae: AbstractSAE
    site: str
    target_site: str
    name: str
    domain: Domain = EVERYWHERE

    @classmethod
    def at(cls, sae: AbstractSAE, site: str, target_site: str | None = None) -> "Dictionary":
        """An SAE at a site, called after it."""
        return cls(sae, site, target_site or site, site)

    @classmethod
    def of_run(cls, run: Run, lm: LanguageModel) -> "Dictionary":
        """A run's SAE, applied where it was trained; its name is the run's.

        Raises:
            UsageError: the run was trained on another model.
        """
        check_model(lm, run)
        site = run.config.site
        target = run.options.get("target_site") or site
        return cls(run.load_sae(str(lm.device)), site, target, run.name, run.domain)

    def encode(
        self,
        tokens: Int[Tensor, "batch pos"],
        x: Float[Tensor, "batch pos d_in"],
        target: Float[Tensor, "batch pos d_out"],
    ) -> tuple[SparseCodes, Bool[Tensor, "batch pos"]]:
        """The codes of every row of whole contexts, batch by batch, and where it is applied.

        Elsewhere nothing fires. `target` is what is to be reconstructed, `x` unless it is a
        transcoder.
        """
        applies = self.domain.covers(tokens.to(x.device), x, target=target)
        rows = rearrange(x, "b p d -> (b p) d").to(self.sae.W_dec.dtype)
        where = applies.flatten()
        if bool(where.all()):
            return self.sae.encode(rows), applies
        none = rows.new_zeros(len(rows), 1)
        values, indices = none, none.long()
        if bool(where.any()):
            codes = self.sae.encode(rows[where]).rectangular()
            shape = len(rows), codes.values.shape[1]
            values = rows.new_zeros(shape).masked_scatter(where[:, None], codes.values)
            indices = none.new_zeros(shape).long().masked_scatter(where[:, None], codes.indices)
        return SparseCodes(values, indices, self.sae.d_sae), applies

    @property
    def before_post(self) -> bool:
        """Whether it writes what an MLP returns and not what of that is added to the stream.

        They differ where a norm or a multiplier stands behind the MLP (Gemma 2 and 3, OLMo 2,
        Granite): `mlp.hook_out` lies before it, `hook_mlp_out` behind.
        """
        return Site.of(self.target_site).part == "mlp.hook_out"

    @property
    def place(self) -> Place:
        """Where it stands.

        Raises:
            UsageError: attribution knows no exact rule for this site.
        """
        if (place := place_of(self.site, self.target_site)) is not None:
            return place
        raise UsageError(
            f"{self.name} reads {self.site}"
            + ("" if self.site == self.target_site else f" and writes {self.target_site}")
            + "; circuits take SAEs at attn.hook_z, hook_resid_pre or hook_resid_post, and "
            "transcoders from mlp.hook_in (or ln2.hook_out) to hook_mlp_out or mlp.hook_out."
        )


def by_depth(dictionaries: Sequence[Dictionary], n_layers: int) -> list[Dictionary]:
    """The dictionaries in the order in which the model computes them.

    Raises:
        UsageError: two stand at one place, or one in a layer that the model does not have.
    """
    found: dict[Place, Dictionary] = {}
    for dictionary in dictionaries:
        place = dictionary.place
        if place.layer > n_layers - (place.kind != "residual"):
            raise UsageError(
                f"{dictionary.name} reads {dictionary.site}, but the model has layers 0 to "
                f"{n_layers - 1}."
            )
        if place in found:
            raise UsageError(
                f"{found[place].name} and {dictionary.name} stand at the same place, "
                f"{dictionary.site}; give one of them."
            )
        found[place] = dictionary
    return [found[place] for place in sorted(found, key=lambda place: place.depth)]
