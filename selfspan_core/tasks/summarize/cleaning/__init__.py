"""From a text as people paste it to the text of an article; see `pipeline`. No torch here, and no sentence splitter."""
