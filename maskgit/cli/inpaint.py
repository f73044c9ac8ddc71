"""The command line of inpainting: `python inpaint.py`, or `maskgit-inpaint` once installed.

python inpaint.py                                                       # the samples, with the embedded model
python inpaint.py --images photos --mask holes --output filled          # a folder, with a folder of masks
python inpaint.py --images photos --outpaint 0 0 50% 0                  # half a picture more on the right
python inpaint.py --images photos --box 25% 25% 50% 50% --class Flags   # paste a class into a box
python inpaint.py --generate 16 --class "Food & Drink"                  # from nothing
python inpaint.py --maps --map-at 50% 30%                               # where the model looks, and how sure it is
"""

from __future__ import annotations

from collections.abc import Sequence

from maskgit.cli.options import Options
from maskgit.cli.run import Run
from maskgit.console import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process.

    Returns:
        The exit status: 0; 1 if any file failed; 2 for bad usage; 130 after Ctrl-C.
    """
    return run_command(Options, lambda options: Run(options).run(), argv)
