"""`python -m defi_rollout`."""

import sys

from defi_rollout import main

if __name__ == "__main__":
    sys.exit(main.main())
