"""Streamlit, which Ctrl-C ends well: `python -m feature_browser.shell.serve run APP ...`.

Its own command says "Aborted!" and exits with 1.
"""

import sys

# Streamlit's own click: what its command raises.
from streamlit.web.cli import click, main

if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.Abort:
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
