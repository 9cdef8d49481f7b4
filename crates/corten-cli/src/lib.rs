//! Docker command line: commands, flags, tables, progress
