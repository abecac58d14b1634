"""Tools of the project that no user needs: how what is shipped was made."""
