"""What text needs: tokenizers, the cache of tokens, and data that ships in Python packages."""
