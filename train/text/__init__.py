"""From files to windows of symbol ids."""
