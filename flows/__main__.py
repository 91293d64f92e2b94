"""`python -m flows` is `neurovfm`."""

from flows.cli import main

if __name__ == "__main__":
    main()
