"""Training both stages: `train.py tokenizer`, `train.py tokens`, `train.py transformer`; all three: `train.py model`.

It may import every room below (metrics, network, data, tokenizer, decoding, canvas); only commands, tests and
benchmarks import it. In reading order:

- settings: every option of every command; recipe_file: those that belong together, in the folder recipes and in files
  of the user's; run_file: what run.json keeps of them;
- cli: the command line; dry_run: what a run would take;
- whole: all of it in a given time; pace: how long a step takes, from which that is planned; crops: what it makes of
  photographs;
- loop: the steps from the first to the last, the same for both stages, and what a `StageTask` brings to them;
- tokenizer: the task of stage 1; transformer: that of stage 2, with tokens (what it is trained on), warm_start (from
  which weights) and validation (what it is judged by);
- samples: which image is seen when; engine: processes, precision, the parts of a batch; optimizer: how weights move;
- checkpoint: what a killed run goes on from; signals: stopping when asked to; tracking: curves, pictures, speed.
"""
