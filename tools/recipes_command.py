"""``bstk recipes``: what comes with the package, and every setting of one."""

import argparse

from bitstack.recipe_file import builtin_recipes, load_recipe, to_yaml

from .console import print_json, printable


def run(args: argparse.Namespace) -> int:
    """Print the list, or one recipe as the YAML that ``bstk pack --recipe`` reads.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    if args.recipe is None:
        about = builtin_recipes()
        if args.json:
            print_json({"recipes": about})
        else:
            for name, text in about.items():
                print(f"{name:<{max(map(len, about))}}  {printable(text)}")
        return 0
    recipe = load_recipe(args.recipe)
    if args.json:
        print_json(recipe.to_json())
    else:
        print(to_yaml(recipe), end="")
    return 0
