"""`python -m keras_densepred`."""

import sys

from keras_densepred.cli import main

if __name__ == "__main__":
    sys.exit(main())
