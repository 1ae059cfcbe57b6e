"""`python -m espalier`, and so `torchrun -m espalier`: the command line."""

from espalier.cli.main import main

raise SystemExit(main())
