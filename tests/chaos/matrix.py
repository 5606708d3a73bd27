"""Which fault is done to which stage, as data; a cell that makes no sense says why."""

FAULTS = {
    "worker": "SIGKILL of a process that runs Ray's tasks",
    "actor": "SIGKILL of a long-lived process of the stage",
    "raylet": "SIGKILL of a node with all its processes and its object store; another one joins",
    "driver": "SIGKILL of the command",
    "store": "the S3 server dies and comes back after seconds",
    "link": "the network cable of a node is pulled; another one joins",
    "disk": "the disk of the output is full until there is space again",
    "mlflow": "the MLflow server dies and comes back after seconds",
}
STAGES = {
    "labels": "addresses to labels in one stream (jobs.pseudo_label)",
    "download": "download of stored images, then labels (jobs.pseudo_label --staged)",
    "pretrain": "training on two workers (jobs.pretrain)",
    "sweep": "few-shot trials (jobs.sweep)",
    "evaluate": "measuring a model (jobs.evaluate)",
}
SENSELESS = {
    ("worker", "pretrain"): "its workers are actors, which read their rows themselves; see actor",
    ("worker", "sweep"): "trials are actors; see actor",
    ("store", "evaluate"): "its output is a local folder",
}
FAST = (("driver", "labels"), ("raylet", "labels"), ("store", "labels"), ("mlflow", "labels"))
"""What ``make test`` runs too."""
