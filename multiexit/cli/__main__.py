"""`python -m multiexit.cli COMMAND`, as `accelerate launch -m` needs it."""

from multiexit.cli import main

if __name__ == "__main__":
    main()
