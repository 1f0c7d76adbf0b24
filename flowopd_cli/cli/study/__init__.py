"""``flowopd study``: the runs of a grid, each in a process of its own, and the table of their evaluations."""
