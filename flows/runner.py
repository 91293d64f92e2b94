"""`python -m flows.runner WORKSPACE CRON TIMEZONE`: serve a workspace's deployments until stopped."""

import sys
from pathlib import Path

from flows.deployments import serve_all

if __name__ == "__main__":
    serve_all(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
