"""The published face of a dataset: its card, its Croissant metadata and its report.

Each reads the manifest's dict (and the samples), and writes one file into the dataset's folder.
"""
