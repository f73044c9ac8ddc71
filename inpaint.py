"""Fill holes in images.

    python inpaint.py                                       # the embedded model on the sample images
    python inpaint.py --images photo.jpg --mask hole.png    # white is filled
    python inpaint.py --images photos --mask masks          # two folders, files of the same names
    python inpaint.py --images photos --mask strokes --seed 3 --steps 12
    python inpaint.py --help                                # everything else

Results go to outputs/inpaint (--output): for each image NAME.png and NAME.strip.png.
"""

import sys

from maskgit.cli.inpaint import main
from maskgit.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
