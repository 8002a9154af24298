"""``python -m trilemma``: runs the command ``trilemma``, also where it is not on the PATH."""

from trilemma.cli.main import main

main()
