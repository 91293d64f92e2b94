"""The predictor: from the features of the context to those of the targets."""

# Shape suffixes, this file: N packed tokens (context and targets), C context tokens, T target
# tokens, E encoder width, D predictor width.

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurovfm_core.models.attention import Packing
from neurovfm_core.models.config import PredictorConfig
from neurovfm_core.models.encoder import NORM_EPS, Block, initialize
from neurovfm_core.models.positions import positional_code

__all__ = ["Predictor", "PredictorConfig"]


class Predictor(nn.Module):
    """Predict the teacher's features at hidden positions.

    Context features and, at the targets, one learned vector (of encoder width) get
    the position code beside them and pass the same linear map.

    Parameters
    ----------
    encoder_width
        Width of the features that come in and go out.
    config
        Shape of the predictor itself.
    seed
        Key of the random start weights.
    """

    def __init__(self, encoder_width: int, config: PredictorConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        # A list because the published layout numbers its mask vectors.
        self.mask_tokens = nn.ParameterList([nn.Parameter(torch.zeros(1, encoder_width))])
        self.from_vision_encoder = nn.Linear(encoder_width + config.code_width, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.to_vision_encoder = nn.Linear(config.width, encoder_width)
        initialize(self, seed, "predictor")

    def forward(
        self,
        context_CE: Tensor,
        context_C: Tensor,
        target_T: Tensor,
        coords_N3: Tensor,
        lengths: Sequence[int] | Tensor | Packing,
    ) -> Tensor:
        """Predict the features of the target tokens.

        Parameters
        ----------
        context_CE : (C, E) float32
            Student features of the context tokens.
        context_C, target_T : (C,), (T,) int64
            Rows of `coords_N3` that are context, and those to predict.
        coords_N3 : (N, 3) integer
            Coordinates of all tokens; a row that is not context is filled with the mask vector.
        lengths
            Tokens per volume; they add up to N.

        Returns
        -------
        (T, E) float32
        """
        code_NP = positional_code(coords_N3, self.config.code_width)
        masked_NE = self.mask_tokens[0].expand(len(coords_N3), -1)
        known_NE = masked_NE.index_copy(0, context_C, context_CE)
        x_ND = self.from_vision_encoder(torch.cat((known_NE, code_NP), dim=-1)).float()
        packing = Packing.of(lengths)
        for block in self.blocks:
            x_ND = block(x_ND, packing)
        return self.to_vision_encoder(self.norm(x_ND[target_T])).float()
