"""Prints pip constraints for the oldest version of everything that setup.py admits: "torch>=2.11" as "torch==2.11.*".

python oldest.py EXTRA ...      # of these extras besides what is always needed; after `pip install -e .`
"""

import re
import sys
from importlib.metadata import requires

for requirement in requires("maskgit-inpaint") or ():
    package, _, marker = requirement.partition(";")
    extra = re.search(r'extra == "(\w+)"', marker)
    oldest = re.match(r"([\w-]+).*>=([\d.]+)", package)
    if oldest and (extra is None or extra[1] in sys.argv[1:]):
        name, version = oldest.groups()
        print(f"{name}=={version}{'.*' if version.count('.') < 2 else ''}")
