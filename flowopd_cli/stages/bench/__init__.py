"""``flowopd bench``: what a distillation step costs here, beside the passes that it cannot do without."""
