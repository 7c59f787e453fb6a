"""`python -m asdm`, and so `accelerate launch -m asdm distill …`."""

from asdm.cli import main

if __name__ == "__main__":
    main()
