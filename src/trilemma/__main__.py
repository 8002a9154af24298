"""``python -m trilemma``: runs the command ``trilemma``, also where it is not on the PATH."""

from trilemma.cli.main import main

# A process that a command starts imports this module under another name.
if __name__ == "__main__":
    main()
