"""``flowopd bench``: the cost of a distillation step on this machine, compared with its required passes alone."""
