"""Which files of the inboxes are pictures, quiet and whole."""
