"""What the words mean that every page uses: shown on hover, and in the help that `?` opens."""

WORDS = {
    "latent": "One learned direction of the SAE. It is on for a few tokens, and adds its decoder "
    "row, times its activation, to the reconstruction.",
    "SAE": "Sparse autoencoder: it rewrites a model's activation as a sum of few latents.",
    "site": "The place in the language model whose activations the SAE reads (its hook name).",
    "activation": "How strongly a latent is on for a token; 0 if it is off.",
    "density": "The share of tokens on which a latent is on.",
    "L0": "How many latents are on per token, on average, on held-out text.",
    "FVU": "Fraction of variance unexplained on held-out text: 0 is a perfect reconstruction, 1 is "
    "no better than the mean.",
    "CE recovered": "Of the cross-entropy that zeros at this site would cost, the share that the "
    "reconstruction avoids.",
    "dead": "A latent that never fired on the tokens that the run's features were collected from; "
    "before these are, on the held-out text of its evaluation.",
    "known feature": "Something that the text's labels say of each token, such as “a plural noun”; "
    "latents are matched with it.",
    "F1": "How well “the latent is on” predicts a known feature: 1 is perfect.",
    "AUROC": "How well a latent's activation ranks tokens with a feature before those without: 0.5 "
    "is chance.",
    "logit": "The model's score of a next token before the softmax.",
    "input score": "How far a latent's examples show the tokens that it writes.",
    "output score": "How far adding the latent makes the model say what its decoder row promises.",
    "steering": "Adding a latent's direction while the model writes.",
    "circuit": "Latents, and how they act on each other, behind one prediction.",
    "strata": "Examples drawn at random from equal shares of a latent's firings, weak to strong.",
    "near miss": "A token on which a latent was almost on.",
}


def meaning_of(word: str) -> str:
    """The sentence about a word."""
    return WORDS[word]
