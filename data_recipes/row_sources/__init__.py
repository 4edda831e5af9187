"""Where the rows of a recipe come from: files, catalogues of translations, Hub datasets, facts of packages.

Each module has one `read(options, ...)` that streams rows and rejections; `source.open_source` picks it.
"""
