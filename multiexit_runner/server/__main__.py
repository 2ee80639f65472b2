"""`python -m multiexit_runner.server FOLDER`: serve an export, without torch."""

import sys

from multiexit_runner.server.serve import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
