"""Machines, not logic. Cluster files and the submit helper come with the cluster milestone; see CHANGELOG.md."""
