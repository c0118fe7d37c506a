"""``python -m pipeline`` is the command ``lvmae``."""

from pipeline.commands.main import main

if __name__ == "__main__":
    main()
