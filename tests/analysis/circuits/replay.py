"""The frozen model run forward in plain loops: a second method for every gradient and edge."""

from collections.abc import Mapping

import torch

from saelab.analysis.circuits.frozen import Frozen
from saelab.sites import Place

Moved = Mapping[int, float | torch.Tensor]


class Replay:
    """What every latent reads, and the final norm's output, after some latents were moved.

    hold: latents keep their recorded values (moved ones apart), so only direct effects show.
    """

    def __init__(self, frozen: Frozen, moved: Moved | None = None, *, hold: bool = True):
        self.frozen, self.moved, self.hold = frozen, moved or {}, hold
        self.read = frozen.values.clone()
        self.acts = frozen.values.clone()
        record = frozen.record
        stream = record.embed[0] + record.position[0]
        for layer, (weights, seen) in enumerate(
            zip(frozen.weights.layers, record.layers, strict=True)
        ):
            stream = self.through(Place(layer, "residual"), stream, stream)
            x = self.norm(weights.ln1, stream, seen.ln1_scale[0])
            z = torch.zeros_like(seen.z[0])
            for head in range(len(weights.W_V)):
                v = x @ weights.W_V[head] + weights.b_V[head]
                z[:, head] = seen.pattern[0, head] @ v
            z = self.through(Place(layer, "heads"), z.flatten(1), z.flatten(1))
            attn = z @ weights.W_O.flatten(0, 1) + weights.b_O
            place = Place(layer, "attention")
            number = frozen.at_place.get(place)
            if number is not None and frozen.actives[number].before_post:
                attn = self.through(place, attn, attn)
            attn = self.norm(weights.attn_post, attn, seen.attn_post_scale[0])
            if number is not None and not frozen.actives[number].before_post:
                attn = self.through(place, attn, attn)
            read = stream if weights.parallel else stream + attn
            place, x = Place(layer, "mlp"), self.norm(weights.ln2, read, seen.ln2_scale[0])
            number = frozen.at_place.get(place)
            mlp = self.through(place, x, seen.mlp_out[0])
            if number is not None and frozen.actives[number].before_post:
                mlp = self.norm(weights.mlp_post, mlp, seen.mlp_post_scale[0])
            stream = stream + attn + mlp
        stream = self.through(Place(len(record.layers), "residual"), stream, stream)
        self.final = self.norm(frozen.weights.ln_final, stream, record.ln_final_scale[0])

    def norm(self, norm, x, scale):
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        return centred / scale * norm.gain + norm.bias

    def through(self, place: Place, x, out):
        number = self.frozen.at_place.get(place)
        if number is None:
            return out
        active, start = self.frozen.actives[number], self.frozen.spans[number].start
        written = active.error + active.b_dec
        if active.skip is not None:
            written = written + x @ active.skip.W
        for entry in range(len(active.codes)):
            position = active.codes.row[entry]
            value = active.codes.encoder[entry] @ x[position] + active.codes.constant[entry]
            self.read[start + entry] = value
            acts = active.codes.values[entry] if self.hold else value
            acts = acts + self.moved.get(start + entry, 0.0)
            self.acts[start + entry] = acts
            written[position] = written[position] + acts * active.decoder[entry]
        for source, below in enumerate(self.frozen.actives[:number]):
            for further in (each for each in below.further if each.place == place):
                first = self.frozen.spans[source].start
                for entry, position in enumerate(below.codes.row.tolist()):
                    if further.lands[position]:
                        row = self.acts[first + entry] * further.rows[entry]
                        written[position] = written[position] + row
        return written

    def logits(self):
        weights = self.frozen.weights
        W_U = weights.W_U.to(self.final.dtype) * weights.logit_scale
        logits, cap = self.final @ W_U + weights.b_U, weights.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)
