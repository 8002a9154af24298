"""The command line, one subcommand per file. Importing it needs no torch; each imports what it runs."""
