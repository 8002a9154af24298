"""The command line, one subcommand per file. Commands import torch only when they run."""
