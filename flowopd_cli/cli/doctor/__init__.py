"""The checks of ``flowopd doctor``."""
