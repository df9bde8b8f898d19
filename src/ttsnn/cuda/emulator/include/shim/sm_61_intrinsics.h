// TVM includes it wherever bytes are loaded four at a time; the dot products in it are not used.
