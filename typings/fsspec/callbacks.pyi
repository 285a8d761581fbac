from typing import Any

DEFAULT_CALLBACK: Any
