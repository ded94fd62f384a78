"""Records: what the files of people hold, read from anywhere and checked."""
