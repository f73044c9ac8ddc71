"""`python -m benchmarks.compiled`."""

import sys

from benchmarks.compiled import command

if __name__ == "__main__":  # not so in the processes that it starts
    sys.exit(command.main())
