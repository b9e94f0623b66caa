"""Pages by themselves: a pass of the whole script takes ten times as long as the page it draws."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from feature_browser.data.catalogue import latent_number
from feature_browser.data.reading import list_runs, open_run
from feature_browser.pages.latent.address import LatentAddress
from feature_browser.pages.latent.view import draw
from feature_browser.shell.launch import runs_directory
from saelab.config import UsageError


def latent_page(request: Request) -> PlainTextResponse:
    """The HTML of the latent that the query string names; 404 with a sentence if there is none.

    It is sent as plain text: it is shown by the canvas, and by nothing else.
    """
    address = LatentAddress.of(request.query_params)
    # Runs are looked up among those that were found, so no path is made of what was asked.
    catalogue = list_runs(runs_directory())
    card = catalogue.runs.get(address.run or "")
    if card is None:
        missing = f"There is no run {address.run}."
        return PlainTextResponse(catalogue.damaged.get(address.run or "", missing), 404)
    try:
        run = open_run(card)
        number = latent_number(address.latent, len(run.features))
        if number is None:
            return PlainTextResponse(f"There is no latent {address.latent}.", 404)
        content = run.page(address.to(latent=number), draw)
    except UsageError as error:
        return PlainTextResponse(str(error), 404)
    return PlainTextResponse(content, headers={"Cache-Control": "no-store"})
