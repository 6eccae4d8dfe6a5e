"""The originals' weight files, read by the names and in the layouts of our tree."""
