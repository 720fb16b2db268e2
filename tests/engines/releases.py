"""Which releases of vLLM the connector takes."""

import unittest

import vllm
from kvd.vllm.versions import Unsupported, require_known


class Releases(unittest.TestCase):
    def test_known(self) -> None:
        for version in ("0.26.0", "0.27.1", "0.32.0+cpu", vllm.__version__):
            require_known(version)

    def test_unknown(self) -> None:
        for version in ("0.25.1", "0.33.0", "1.0.0", "0.260.0", "0.32.1.dev3+g1234567", "0.32.0rc1", "dev"):
            with self.assertRaisesRegex(Unsupported, "knows vLLM 0.26 to 0.32"):
                require_known(version)


if __name__ == "__main__":
    unittest.main()
