import pathlib
import sys

# The toy objective is shared by these tests and by the processes that they start.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
