"""What the pages read: runs, their features, labels and notes."""
