"""``python -m flowopd_cli``: what ``accelerate launch`` starts."""

from flowopd_cli.cli.app import main

if __name__ == "__main__":
    main()
