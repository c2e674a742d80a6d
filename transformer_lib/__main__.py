"""`python -m transformer_lib`: see transformer_lib.command_line."""

import sys

from transformer_lib.command_line import main

if __name__ == "__main__":
    sys.exit(main())
