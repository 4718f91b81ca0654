"""The embedded teacher: small models of the real architectures, trained on procedural rooms, and the recipe that trained them."""
