"""What stands where other latents' logit effects do, for latents that are quadratic forms."""

from feature_browser.data.manifolds import manifold
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import count, percent
from feature_browser.draw.plane import plane
from feature_browser.pages.latent.cards import LatentScene
from saelab.config import UsageError

TITLE = "Activations in the plane of its form"


def plane_card(scene: LatentScene) -> Html:
    """The strongest and random activations of the run's store in the form's plane."""
    try:
        found = manifold(scene.run.card, scene.record.latent)
    except UsageError as error:
        return boxed(TITLE, html('<p class="sub">{error}</p>', error=error))
    rest = "" if found.share > 0.999 else f" The plane holds {percent(found.share)} of it."
    text = (
        "Unit activations along the form's two largest eigenvectors; opacity is strength. A form "
        f"has no decoder row, so it writes nothing to the logits.{rest}"
    )
    body = html('{plane}<p class="sub">{text}</p>', plane=plane(found), text=text)
    hint = f"{count(found.n_strongest)} strongest of {count(found.n_rows)}, and others at random"
    return boxed(TITLE, body, hint=hint)
