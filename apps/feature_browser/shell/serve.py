"""Streamlit, which Ctrl-C ends well: `python -m feature_browser.shell.serve run APP ...`.

Its own command says "Aborted!" and exits with 1.
"""

import sys


def serve() -> int:
    """Streamlit's command; the exit code."""
    # Its own click: what the command raises.
    from streamlit.web.cli import click, main

    try:
        main(standalone_mode=False)
    except click.Abort:
        return 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(serve())
    except KeyboardInterrupt:  # While it is imported.
        sys.exit(0)
