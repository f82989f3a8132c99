"""`python -m tas` is the command `tas`."""

from tas.cli import main

main()
