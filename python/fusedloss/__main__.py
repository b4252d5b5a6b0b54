"""`python -m fusedloss check` and `python -m fusedloss bench`; `--help` tells their options."""

from __future__ import annotations

import sys

EXTRA = ("matplotlib", "rich", "typer")


def main() -> None:
    try:
        import typer

        from fusedloss.bench.command import bench
        from fusedloss.testing.command import check
    except ModuleNotFoundError as missing:
        name = (missing.name or "").split(".")[0]
        if name not in EXTRA:
            raise
        sys.exit(
            f"python -m fusedloss needs {name}, which the extra 'cli' brings: pip install 'fusedloss[cli]' "
            f"(or: pip install {' '.join(EXTRA)})"
        )
    app = typer.Typer(help="Checks and measures fusedloss on this machine.", no_args_is_help=True, add_completion=False)
    app.command()(check)
    app.command()(bench)
    app(prog_name="python -m fusedloss")


if __name__ == "__main__":
    main()
