"""A language model with one hook more: a joint site, whose activations are those of several sites.

The sites are one model's, or the same hooks of several models, which then read the same tokens. A
joint site can be read, not replaced: what is read at a later site depends on an earlier one.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.protocol import Edit, LanguageModel, ModelInfo, ModelOutput, Tokenizer
from saelab.sites import Site, parts_of

Activations = dict[str, Float[Tensor, "batch pos _"]]


class JointModel:
    """`lm`, with the hook `site` too; see `LanguageModel`.

    Args:
        site: the joint site, `A+B`, or the one hook that is read in all models.
        factors: by which each site's activations are multiplied, in the models' order.
        others: further models, which are run on the same tokens.
    """

    def __init__(
        self,
        lm: LanguageModel,
        site: str,
        factors: Sequence[float],
        others: Sequence[LanguageModel] = (),
    ) -> None:
        self.lm, self.site, self.others = lm, site, tuple(others)
        self._hooks, self._factors = parts_of(site), tuple(factors)

    @property
    def info(self) -> ModelInfo:
        """Identity and shape of the first model."""
        return self.lm.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The models' tokenizer."""
        return self.lm.tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the first model's weights."""
        return self.lm.device

    def width(self, hook: str) -> int:
        """See `LanguageModel.width`."""
        if hook != self.site:
            return self.lm.width(hook)
        return sum(lm.width(part) for lm in (self.lm, *self.others) for part in self._hooks)

    def capture(self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[str]) -> Activations:
        """See `LanguageModel.capture`."""
        plain = self._plain(hooks)
        return self._with_joint(tokens, self.lm.capture(tokens, plain), hooks)

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[str, Edit] | None = None,
        hooks: Sequence[str] = (),
    ) -> ModelOutput:
        """See `LanguageModel.run`; the predictions are the first model's.

        Raises:
            UsageError: an edit is at the joint site.
        """
        if self.site in (edits or {}):
            raise UsageError(
                f"{self.site} is {len(self._factors)} sites, which can be read together but not "
                "replaced; take an SAE of one site."
            )
        out = self.lm.run(tokens, edits=edits, hooks=self._plain(hooks))
        found = self._with_joint(tokens, out.activations, hooks)
        return ModelOutput(out.hidden, found, out.unembed, out.d_vocab)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Mapping[str, Edit] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """See `LanguageModel.logits`; those of the first model."""
        with torch.no_grad():
            return self.run(tokens, edits=edits).logits

    def gradients(
        self,
        tokens: Int[Tensor, "batch pos"],
        hooks: Sequence[str],
        real: Bool[Tensor, "batch pos"],
    ) -> tuple[Activations, Activations]:
        """See `LanguageModel.gradients`; not at the joint site."""
        return self.lm.gradients(tokens, hooks, real)

    def logit_effects(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_vocab"] | None:
        """See `LanguageModel.logit_effects`; at the joint site the sum over its sites, if any."""
        return self._summed(self.lm.logit_effects, hook, directions)

    def residual_writes(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_model"] | None:
        """See `LanguageModel.residual_writes`; at the joint site the sum over its sites, if any."""
        return self._summed(self.lm.residual_writes, hook, directions)

    def why_no_logits(self, hook: str) -> str | None:
        """See `LanguageModel.why_no_logits`; attentions and MLPs add up, the stream does not.

        What is added to the stream at one layer is in the stream at the next already.
        """
        if hook != self.site:
            return self.lm.why_no_logits(hook)
        if self.others or any(Site.of(part).output is None for part in self._hooks):
            return f"{hook} is {len(self._factors)} sites, and each has a path of its own."
        return next(filter(None, map(self.lm.why_no_logits, self._hooks)), None)

    def _summed(
        self,
        effects: Callable[[str, Tensor], Tensor | None],
        hook: str,
        directions: Float[Tensor, "n d_in"],
    ) -> Tensor | None:
        if hook != self.site:
            return effects(hook, directions)
        if self.why_no_logits(hook) is not None:
            return None
        parts = directions.split([self.lm.width(part) for part in self._hooks], dim=-1)
        scaled = zip(self._hooks, parts, self._factors, strict=True)
        found = [effects(part, rows / factor) for part, rows, factor in scaled]
        known = [one for one in found if one is not None]
        return torch.stack(known).sum(dim=0) if len(known) == len(found) else None

    def _plain(self, hooks: Sequence[str]) -> list[str]:
        """The hooks of the first model that are read for these."""
        wanted = [part for hook in hooks for part in self._of(hook)]
        return list(dict.fromkeys(wanted))

    def _of(self, hook: str) -> tuple[str, ...]:
        return self._hooks if hook == self.site else (hook,)

    def _with_joint(
        self, tokens: Int[Tensor, "batch pos"], found: Activations, hooks: Sequence[str]
    ) -> Activations:
        """What was asked for, of what the first model's hooks gave."""
        if self.site not in hooks:
            return found
        every = [found[part] for part in self._hooks]
        for other in self.others:
            there = other.capture(tokens.to(other.device), self._hooks)
            every += [there[part].to(every[0].device) for part in self._hooks]
        scaled = zip(every, self._factors, strict=True)
        joint = torch.cat([part.float() * factor for part, factor in scaled], dim=-1)
        own = {hook: found[hook] for hook in hooks if hook != self.site}
        return own | {self.site: joint}


def plain_model(lm: LanguageModel) -> LanguageModel:
    """The model alone, or the first of several, without the joint sites that were added."""
    while isinstance(lm, JointModel):
        lm = lm.lm
    return lm
