"""How options are written: units, paths, and the texts that say what is wrong with one."""
