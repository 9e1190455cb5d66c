"""The `moorage` command of the host side. `python -m moorage.cli` is the same.

One module per family of commands, each with `add(app)`; `app.py` puts them together. What a command needs beyond the
standard library and typer is imported when it runs, so that `moorage --help` comes at once.
"""

from moorage.cli.app import main as main
