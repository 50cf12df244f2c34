"""The commands around everything: run, recipe."""

import json

import click

from ..api.network import Network, recipe_schema
from .options import command
from .tables import show_outcome

run = command(
    Network.run,
    """compress run --model k49 --data digits
          compress run --recipe recipe.toml""",
)(show_outcome)


@click.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, with which editors complete and check them.")
def recipe(schema: bool) -> None:
    """The recipes that come with this toolkit, or what one may say.

    \b
    Example:  compress recipe
              compress recipe --schema > recipe.schema.json
    """
    from ..artifacts.recipe import RECIPES

    if schema:
        click.echo(json.dumps(recipe_schema(), indent=1))
        return
    for path in sorted(RECIPES.glob("*.toml")):
        first = path.read_text(encoding="utf-8").splitlines()
        click.echo(f"{path.stem.ljust(18)}{next((line[2:] for line in first if line.startswith('# ')), '')}")
