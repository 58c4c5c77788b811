"""Parts of the script for a machine with a GPU, by what they need."""
