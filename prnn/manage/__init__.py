"""Management of run directories: what ``prnn-runs`` lists, shows, follows and removes. Imports no torch."""
