"""A reward that draws from the generators of three libraries, as a user's own might."""

import random

import numpy as np
import torch


def score(images, prompts):
    """Half of it is the picture, the other half is luck."""
    luck = torch.rand(len(prompts)) + torch.tensor([random.random() + np.random.rand() for _ in prompts])
    return images.mean((1, 2, 3)).cpu() + luck / 3
