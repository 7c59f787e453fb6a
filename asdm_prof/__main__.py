"""`python -m asdm_prof`, as which `asdm slim` starts it."""

from asdm_prof.cli import main

if __name__ == "__main__":
    main()
