"""The rules, one a file. Nothing else lives here."""
