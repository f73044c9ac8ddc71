"""Hostile inputs: files, arrays, settings and command lines that somebody made to break something.

    python -m tests.hostile --inputs 5000 --seed 7                  # so many for each group
    python -m tests.hostile --group pictures --only 12 --seed 7     # one of them again

Each group has inputs with a name, the kinds that failed once, and any number of random ones, which depend on the seed
and their number only. Each input is made and used in a forked process of its own, in an empty folder, with limits of
time and memory. It must work, or be refused as the called function or command documents it; nothing else.

    cases.py     what a group gives: a call, and what counts as well done
    sandbox.py   one input in a process of its own
    bending.py   what all groups do to bytes, JSON and files
    seeds.py     sound inputs to begin with
    the others   a group each
"""
