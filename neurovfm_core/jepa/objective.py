"""What the student has to predict, how a prediction is judged, and how the teacher follows."""

# Shape suffixes, this file: N packed tokens, T target tokens, D encoder width.

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

TARGET_NORM_EPS = 1e-5


def normalized_targets(teacher_ND: Tensor) -> Tensor:
    """Give every token's teacher features mean 0 and variance 1, without learned scale.

    It takes from the teacher the easy way to a small loss: shrinking its output.
    """
    return layer_norm(teacher_ND, teacher_ND.shape[-1:], eps=TARGET_NORM_EPS)


def token_losses(predicted_TD: Tensor, wanted_TD: Tensor) -> Tensor:
    """Return the smooth L1 loss (beta 1) of every target token, averaged over the width.

    The loss of a batch is the mean over all its target tokens, so large volumes
    weigh more.

    Returns
    -------
    (T,) float32, >= 0
    """
    return smooth_l1_loss(predicted_TD, wanted_TD, reduction="none", beta=1.0).mean(dim=-1)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student: ``teacher = m teacher + (1 - m) student``, in place."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)
