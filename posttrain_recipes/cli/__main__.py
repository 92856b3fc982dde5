"""`python -m posttrain_recipes.cli` is `ptl`."""

from posttrain_recipes.cli import main

main()
