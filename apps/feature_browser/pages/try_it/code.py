"""Try it as Python: which latents fire on which token."""

from feature_browser.data.catalogue import OWN_ARRAYS, RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.pages.try_it.address import TryAddress


def try_elsewhere(card: RunCard, address: TryAddress) -> Elsewhere:
    """The latents on the texts of the address; as a command, why the next token is likely."""
    texts = [text for text in (address.prompt, address.second) if text.strip()]
    if card.model == OWN_ARRAYS or not texts:
        return NOWHERE
    chat = bool(address.chat)
    words = ["--prompt", texts[0], *(["--target", address.target] if address.target else []),
             *(["--chat"] if chat else [])]  # fmt: skip
    why = command("circuit", card.path, *words) if card.in_circuits else ""
    return Elsewhere(
        why,
        python(
            card,
            "import torch",
            "import saelab",
            "from saelab.host.host import load_model_of",
            f"from saelab.lm.prompt import {'chat_prompt, ' if chat else ''}prompt_tokens",
            "",
            "run = saelab.Run($RUN)",
            "lm = load_model_of([run])",
            "host = saelab.Host.of_run(run, lm)",
            "for text in $texts:",
            f"    ids = prompt_tokens(lm, {'chat_prompt(lm, text)' if chat else 'text'})",
            "    tokens = torch.tensor([ids], device=lm.device)",
            "    with torch.no_grad():",
            "        seen = lm.run(tokens, hooks=host.sites).activations",
            "        codes, _ = host.encode(tokens, seen[host.reads], seen[host.writes])",
            "    for token, row in zip(ids, codes.dense()):",
            "        latents = row.nonzero()[:, 0]",
            "        latents = latents[row[latents].abs().argsort(descending=True)].tolist()",
            "        found = [(latent, round(float(row[latent]), 2)) for latent in latents[:5]]",
            "        print(lm.tokenizer.table.name(token), found)",
            texts=texts,
        ),
    )
