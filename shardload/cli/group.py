"""Group: commands under one name."""

from __future__ import annotations

import click

from shardload.errors import UsageError


class Group(click.Group):
    """Shows its help when it is called alone, as an error: click before 8.2 calls that a success."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, of which there must be one."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True, color=ctx.color)
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)
