"""One module per group of commands: flags and help only."""
