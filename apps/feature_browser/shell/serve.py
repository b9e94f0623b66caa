"""Streamlit, which Ctrl-C ends well: `python -m feature_browser.shell.serve run APP ...`.

Its own command says "Aborted!" and exits with 1.
"""

import sys

from click.exceptions import Abort, ClickException
from streamlit.web.cli import main

if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except Abort:
        sys.exit(0)
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
