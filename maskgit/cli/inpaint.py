"""The command line of inpainting: `python inpaint.py`, or `maskgit-inpaint` once installed.

python inpaint.py                                                       # the samples, with the embedded model
python inpaint.py --images photos --mask holes --output filled          # a folder, with a folder of masks
python inpaint.py --images photos --outpaint 0 0 50% 0                  # half a picture more on the right
python inpaint.py --images photos --box 25% 25% 50% 50% --class Flags   # paste a class into a box
python inpaint.py --generate 16 --class "Food & Drink"                  # from nothing
python inpaint.py --maps --map-at 50% 30%                               # where the model looks, and how sure it is
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import tyro

from maskgit.cli.options import Options, UsageError, decode_config
from maskgit.cli.run import BAD_USAGE, INTERRUPTED, Run
from maskgit.console import printable, warnings_as_lines

__all__ = ["Options", "decode_config", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit status: 0; 1 if any file failed; 2 for bad usage; 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no valid text
    try:
        options = tyro.cli(Options, args=argv, config=(tyro.conf.DisallowNone,))
    except SystemExit as stop:  # --help, or options that tyro could not read
        return int(stop.code or 0)
    try:
        with warnings_as_lines():
            return Run(options).run()
    except UsageError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
