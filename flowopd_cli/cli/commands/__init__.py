"""One module a group of commands: flags and help, nothing else."""
