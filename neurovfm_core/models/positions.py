"""The position code of a token, computed where it is needed: no table, no largest grid."""

# Shape suffixes, this file: N tokens, C values of the code, F frequencies.

import torch
from torch import Tensor


def positional_code(coords_N3: Tensor, code_width: int = 30) -> Tensor:
    """Return sines and cosines of grid coordinates.

    Parameters
    ----------
    coords_N3 : (N, 3) integer or float
        Grid coordinates (d, h, w), in tokens.
    code_width
        Values per token, a multiple of 6.

    Returns
    -------
    (N, C) float32 in [-1, 1], C = code_width
        For each axis in order d, h, w: sin(p f_0), cos(p f_0), sin(p f_1), ...
        with f_k = 10000^(-2k/c) and c = C / 3.

    References
    ----------
    Vaswani et al. 2017, section 3.5, once per axis.
    """
    per_axis = code_width // 3
    # The frequencies in double precision: they cost nothing, and errors grow with the coordinate.
    exponents_F = torch.arange(0, per_axis, 2, dtype=torch.float64, device=coords_N3.device) / per_axis
    angles_N3F = coords_N3[:, :, None].float() * (10_000.0**-exponents_F).float()
    return torch.stack((angles_N3F.sin(), angles_N3F.cos()), dim=-1).flatten(1)
