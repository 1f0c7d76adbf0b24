"""Model families over diffusers, and the adapters that play their roles."""

import os

# Read when transformers is first imported. Its advice to install torchvision breaks it beside a CPU build of torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
