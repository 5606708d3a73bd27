"""Score predictions by the protocols of COCO, LVIS, Flickr30k Entities and Pascal VOC.

``python -m jobs.score --help`` lists the metrics, ``--help`` after one of them its flags.
"""

from jobs import cli, recipes
from pipeline.score import score

if __name__ == "__main__":
    cli.main(score, recipes.SCORES, "Score a file of predictions; the metrics are printed as json.", needs_ray=False)
