"""`python -m federation` is the same as `federation`."""

from federation.cli.main import main

if __name__ == "__main__":
    main()
