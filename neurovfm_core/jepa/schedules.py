"""Learning rate and teacher momentum as pure functions of the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up from `start` to `peak`, then a cosine down to `final`."""

    start: float
    peak: float
    final: float
    num_warmup_steps: int
    num_steps: int

    def at(self, step: int) -> float:
        """Return the learning rate of the update made at `step` (from 0)."""
        if step < self.num_warmup_steps:
            return self.start + (self.peak - self.start) * step / self.num_warmup_steps
        progress = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclass(frozen=True, slots=True)
class Momentum:
    """Linear from `start` to `end`; the last step of the run has `end`."""

    start: float
    end: float
    num_steps: int

    def at(self, step: int) -> float:
        """Return the teacher's momentum after the update made at `step` (from 0)."""
        return self.start + (self.end - self.start) * min(1.0, step / max(1, self.num_steps - 1))
