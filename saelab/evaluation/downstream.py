"""The cost of the reconstruction: cross-entropy and KL with x_hat instead of x in the model."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.evaluation.inputs import Batch, Inputs, decoder, language_model, replaceable_site
from saelab.evaluation.measurement import Line, Measurement, Streamed
from saelab.host.text import Text
from saelab.lm.edits import replace_rows
from saelab.lm.predictions import Predictions, exact
from saelab.lm.protocol import LanguageModel, ModelOutput
from saelab.types import Figures


class Downstream:
    """Cross-entropy of the plain, the spliced and the zero-ablated model on the same positions.

    CE recovered = (CE_zero - CE_sae) / (CE_zero - CE_plain): 1 is the plain model, 0 is no better
    than zeros. KL is KL(plain || spliced), in nats per token.
    """

    def __init__(self, device: torch.device) -> None:
        self.n = 0
        self.plain, self.spliced, self.zero, self.kl, self.agree = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(5)
        )

    @torch.no_grad()
    def update(
        self,
        lm: LanguageModel,
        hook: str,
        tokens: Int[Tensor, "context pos"],
        mask: Bool[Tensor, "context pos"],
        x_hat: Float[Tensor, "row d_in"],
        *,
        plain: ModelOutput | None = None,
    ) -> None:
        """Add a batch of contexts; counts positions whose own and next token are real.

        `plain` is the plain model's output on `tokens`; if not given, it costs another forward
        pass. Logits are made a few positions at a time.
        """
        counted = F.pad(counted_positions(mask), (0, 1))
        target = tokens[:, 1:][counted[:, :-1]]

        def replaced(rows: Float[Tensor, "row d_in"]) -> Predictions:
            return lm.run(tokens, edits={hook: replace_rows(mask, rows)}).at(counted)

        outputs = (plain or lm.run(tokens)).at(counted), replaced(x_hat)
        zero = replaced(torch.zeros_like(x_hat))
        self.n += len(target)
        for part in zero.pieces():
            p, q = (exact(output.logits(part)).log_softmax(-1) for output in outputs)
            self.plain += F.nll_loss(p, target[part], reduction="sum")
            self.spliced += F.nll_loss(q, target[part], reduction="sum")
            self.kl += F.kl_div(q, p, reduction="sum", log_target=True)
            self.agree += (p.argmax(-1) == q.argmax(-1)).sum()
        self.zero += cross_entropy(zero, target)

    def results(self) -> Figures:
        """ce_plain, ce_spliced, ce_zero, kl (nats per token), ce_recovered, top1_agreement.

        Raises:
            UsageError: no position was counted.
        """
        if not self.n:
            raise UsageError("The text has no two tokens in a row to evaluate on; give more text.")
        plain, spliced, zero, kl, agree = (
            float(total) / self.n
            for total in (self.plain, self.spliced, self.zero, self.kl, self.agree)
        )
        return {
            "ce_plain": plain,
            "ce_spliced": spliced,
            "ce_zero": zero,
            "kl": kl,
            "ce_recovered": (zero - spliced) / (zero - plain),
            "top1_agreement": agree,
        }


def counted_positions(mask: Bool[Tensor, "context pos"]) -> Bool[Tensor, "context pos-1"]:
    """The positions whose prediction counts: their own and the next token are real."""
    return mask[:, :-1] & mask[:, 1:]


def cross_entropy(out: Predictions, target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, summed over positions."""
    return out.total(lambda logits, part: F.cross_entropy(logits, target[part], reduction="sum"))


@torch.no_grad()
def against_mean(
    figures: Figures, lm: LanguageModel, hook: str, texts: Iterable[Text], mean: Tensor
) -> Figures:
    """`figures` with CE recovered against mean ablation beside zero ablation, on the same texts.

    CE recovered = (CE_mean - CE_sae) / (CE_mean - CE_plain), where CE_mean is the model's
    cross-entropy with the site's mean `[d_in]` at every counted row: a baseline that knows what all
    tokens share. It costs a forward pass.
    """
    total, n = torch.zeros((), dtype=torch.float64, device=lm.device), 0
    for text in texts:
        rows = mean.to(text.tokens.device).float().expand(int(text.mask.sum()), -1)
        counted = F.pad(counted_positions(text.mask), (0, 1))
        out = lm.run(text.tokens, edits={hook: replace_rows(text.mask, rows)}).at(counted)
        total += cross_entropy(out, text.tokens[:, 1:][counted[:, :-1]])
        n += len(out)
    ce_mean = float(total) / n
    recovered = (ce_mean - figures["ce_spliced"]) / (ce_mean - figures["ce_plain"])
    return figures | {"ce_mean": ce_mean, "ce_recovered_mean": recovered}


def _lines(d: Figures) -> Iterator[Line]:
    yield "CE, model alone", f"{d['ce_plain']:.4f}", "nats per token of held-out text"
    yield "CE, SAE spliced in", f"{d['ce_spliced']:.4f}", "the model reading the reconstruction"
    yield "CE, zeros spliced in", f"{d['ce_zero']:.4f}", "the site removed"
    yield "CE recovered", f"{d['ce_recovered']:.2%}", "100 % is the model alone, 0 % is zeros"
    yield "KL", f"{d['kl']:.4f}", "nats between the predictions with and without the SAE"
    if "ce_mean" in d:
        meaning = f"0 % is the mean at every token (CE {d['ce_mean']:.4f})"
        yield "CE recovered, mean", f"{d['ce_recovered_mean']:.2%}", meaning


def _spliced(inputs: Inputs) -> Streamed:
    """`Downstream` over the held-out text; in the full suite `against_mean` too."""
    counts, site = Downstream(inputs.device), inputs.site
    total = torch.zeros(inputs.sae.d_out, dtype=torch.float64, device=inputs.device)

    def update(batch: Batch) -> None:
        text = batch.text
        assert text is not None
        assert batch.x_hat is not None, "say needs=(decoder,)"
        total.add_(batch.rows.wanted.double().sum(dim=0))
        counts.update(inputs.lm, site, text.tokens, text.mask, batch.x_hat, plain=text.out)

    def results() -> Figures:
        figures = counts.results()
        if inputs.options.suite == "core":
            return figures
        mean = total / inputs.found["reconstruction"]["n_tokens"]
        return against_mean(figures, inputs.lm, site, inputs.texts(), mean)

    return Streamed(update, results)


DOWNSTREAM = Measurement(
    "downstream",
    "How faithful is it?",
    _lines,
    stream=_spliced,
    needs=(language_model, replaceable_site, decoder),
    suite="core",
    after=("reconstruction",),
)
