"""Write labelled rows as COCO json or ODVG jsonl.

``python -m jobs.export --help`` lists the recipes, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.export import export_alone

if __name__ == "__main__":
    cli.main(export_alone, recipes.EXPORTS, "Write labelled rows as COCO json or ODVG jsonl.", needs_ray=False)
