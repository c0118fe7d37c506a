"""``python -m pipeline`` is the command ``lvmae``."""

from pipeline.command import main

if __name__ == "__main__":
    main()
