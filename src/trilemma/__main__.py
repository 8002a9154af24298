"""``python -m trilemma``: the command, for where the installed one is not on the PATH."""

from trilemma.cli.main import main

main()
