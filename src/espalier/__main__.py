"""`python -m espalier`, and so `torchrun -m espalier`: the command line."""

from espalier.cli import main

raise SystemExit(main())
