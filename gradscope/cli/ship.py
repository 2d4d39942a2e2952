"""Ship what a run has left on this disk to the store that it was to go to."""

from __future__ import annotations

from pathlib import Path

import click

from gradscope.cli import _output
from gradscope.logdir.address import Address
from gradscope.logdir.address import is_address
from gradscope.logdir.address import unfit
from gradscope.logdir.pieces import recorded_below
from gradscope.logdir.shipping import ship_all
from gradscope.logdir.store import why


@click.command("ship")
@click.argument("logdir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("address")
def command(logdir: Path, address: str) -> None:
    """Ship what gradscope has recorded in LOGDIR to ADDRESS, such as s3://bucket/run, as far as it is not there yet.

    Exit code: 0 all of it is there, 2 it is not.
    """
    if not is_address(address):
        raise _output.Unusable(f"{address} is no address of a store: expected one such as s3://bucket/run.")
    remote = Address(address)
    lacking = unfit(remote)
    if lacking is not None:
        raise _output.Unusable(f"{remote} cannot be reached: {lacking}.")
    shipped = _ship(logdir, remote)
    click.echo(f"{shipped:,} bytes were shipped to {remote}.")


def _ship(logdir: Path, remote: Address) -> int:
    directories = recorded_below(logdir)
    if not directories:
        raise _output.Unusable(f"{logdir} holds no record of gradscope's: expected the directory that a run was recorded in.")
    try:
        return sum(ship_all(directory, remote / below) for directory, below in directories)
    except Exception as error:
        raise _output.Unusable(f"Shipping to {remote} failed: {why(error)}. What is in {logdir} stays there.") from error
