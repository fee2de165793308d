"""The statistics of a chat as figures that pages show: lists, tables and charts, with names or without."""
