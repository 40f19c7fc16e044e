"""`python -m dla_train`: the same as the `dla-train` command."""

from dla_train.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
