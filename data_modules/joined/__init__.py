"""Parts of data sets that consist of several streams."""
