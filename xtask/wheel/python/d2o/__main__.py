"""``python -m d2o`` is ``d2o``."""

import os
import sys

from d2o import binary

if __name__ == "__main__":
    program = str(binary())
    os.execv(program, [program, *sys.argv[1:]])
