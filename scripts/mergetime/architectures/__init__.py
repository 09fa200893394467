"""What the tensors of a model are for: data, one YAML file per family, and the functions that read it."""

from mergetime.architectures.architecture import Architecture, Role
from mergetime.architectures.files import architecture_at, architecture_of, files, without_base

__all__ = ["Architecture", "Role", "architecture_at", "architecture_of", "files", "without_base"]
