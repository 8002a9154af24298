"""``python -m ebat``: the command, for where the installed one is not on the PATH."""

from ebat.cli.main import main

main()
