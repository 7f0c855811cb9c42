"""`python bench/speed`: see cli.py."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The benchmark's modules are a package in bench/, beside _results.py.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from speed.cli import main

    sys.exit(main())
