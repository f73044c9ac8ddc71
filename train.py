"""Train a MaskGIT: first the tokenizer (VQGAN), then the transformer over its tokens (MVTM).

    python train.py tokenizer --output runs/tokenizer
    python train.py transformer --tokenizer runs/tokenizer/model --output runs/transformer

on the embedded avatars, or on any folder of images with `--data FOLDER`. Or all of it, in a given time:

    python train.py model --minutes 60 --output runs/model

Add `--resume` to go on after an interruption, `--help` for every setting. `tensorboard --logdir runs` shows the curves
and pictures.
"""

import sys

from maskgit.memory import keep_freed_memory
from maskgit.training.cli import main

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
