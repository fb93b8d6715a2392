"""What another runtime needs: graphs, the file, and a model that runs without torch. Importing it loads nothing."""
