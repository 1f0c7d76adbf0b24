"""The command line: commands, the plan they settle on, and how a plan is carried out."""
