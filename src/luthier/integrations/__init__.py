"""Luthier inside other people's tools; each module needs the tool that it is named after, an extra of Luthier."""
