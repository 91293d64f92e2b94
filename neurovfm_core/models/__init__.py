"""Networks: attention over packed tokens, the encoder, the predictor, their files."""

import os

# Threads of torch spin while they wait for each other, by default so long that a step on two cores
# took 2 to 10 times longer when another process wanted a core (measured). Spinning this little costs
# 2 % on an idle machine. Read when torch is loaded, so it stands before; a value already set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
