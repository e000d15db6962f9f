"""What data sets of molecules need: SMILES, graphs with the features of the papers, and synthetic molecules."""
