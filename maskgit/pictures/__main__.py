"""`python -m maskgit.pictures`."""

import sys

from maskgit.pictures.strips import main

sys.exit(main())
