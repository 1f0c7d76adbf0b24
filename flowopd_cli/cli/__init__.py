"""The command line: the commands, their plans, and the execution of a plan."""
