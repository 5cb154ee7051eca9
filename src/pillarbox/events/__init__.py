"""What happens, and who may have a say: the catalogue, plugins, the pipeline, subscribers."""
