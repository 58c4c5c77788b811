"""Run ``python -m torchrl_rtpd.deploy check FILE``."""

import sys

from torchrl_rtpd.deploy.check import main

if __name__ == "__main__":
    sys.exit(main())
