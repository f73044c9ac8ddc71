"""`python -m maskgit.convert`."""

import sys

from maskgit.convert.cli import main

sys.exit(main())
