"""The data of the pages: runs, their features, labels and notes."""
