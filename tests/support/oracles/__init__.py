"""Random models written by the authors' own libraries, and what it takes to compare with them."""
