import pathlib
import sys

# The generated run is shared by these tests.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
