"""``python -m gradscope``: the command line."""

from __future__ import annotations

from gradscope.cli import main

if __name__ == "__main__":
    main(prog_name="gradscope")
