import sys

from maskgit.convert.cli import main

sys.exit(main())
