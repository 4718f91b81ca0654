"""The embedded teacher: small models of the real architectures, and the recipe that trained them on procedural rooms."""
