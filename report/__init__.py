"""Tables, curves and a page from the results of a grid."""
